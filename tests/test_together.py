"""Two people at once: runs beside each other, beside a reader and beside dbt lose nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitseer_assets.records import STAGES
from circuitseer_assets.settings import PROJECT_ROOT
from resources.home import Home
from tests.conftest import small_settings, write_settings

pytestmark = pytest.mark.long

CIRCUITSEER = str(Path(sys.executable).with_name("circuitseer"))
READ_ALL_THE_TIME = """
import sys, time
from pathlib import Path
from resources.home import Home
home = Home.prepared(Path(sys.argv[1]))
reads = 0
while not Path(sys.argv[2]).exists():
    home.warehouse.query("select count(*) from sample_scores")
    home.warehouse.latest_artifacts("subset")
    reads += 1
    time.sleep(0.2)
print(reads)
"""
BUILD_REPORTS = """
import sys
from pathlib import Path
import dagster as dg
from circuitseer_assets.definitions import make_definitions
from jobs.run import run_job
from jobs.staleness import REPORTS_GROUP, asset_graph_of
from resources.home import Home
home = Home.prepared(Path(sys.argv[1]))
defs = make_definitions(home)
reports = dg.AssetSelection.groups(REPORTS_GROUP).resolve(asset_graph_of(defs))
run_job(defs, home, assets=reports)
"""


class Terminal:
    """A home, and commands run in it as from a terminal."""

    def __init__(self, folder: Path) -> None:
        self.home = Home.prepared(folder)
        self.started: list[subprocess.Popen[str]] = []
        self.set_seed(0)

    def set_seed(self, seed: int) -> None:
        values = small_settings()
        selection = {**values["selection"], "seed": seed}
        write_settings(self.home.folder, {**values, "selection": selection})

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env={**os.environ, "CIRCUITSEER_HOME": str(self.home.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def count(self, table: str) -> int:
        return self.home.warehouse.query(f"select count(*) as n from {table}")["n"][0].as_py()


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    made = Terminal(tmp_path_factory.mktemp("together"))
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def succeed(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said[-3000:]
    return said


def test_two_runs_started_together_make_everything_once(terminal: Terminal) -> None:
    said = [succeed(run) for run in [terminal.start(CIRCUITSEER, "run") for _ in range(2)]]
    artifacts = terminal.home.warehouse.query("select stage, artifact_id from artifacts")
    stages = artifacts["stage"].to_pylist()
    # Each once; of the evaluations there are two: the base model's and the checkpoint's.
    assert sorted(stages) == sorted([*STAGES, "pool", "evaluation"])
    assert all("Pass@1" in text for text in said)
    for stage, artifact_id in zip(stages, artifacts["artifact_id"].to_pylist(), strict=True):
        terminal.home.artifacts.verify(stage, artifact_id)


def test_a_run_beside_a_reader_and_dbt_loses_nothing(terminal: Terminal, tmp_path: Path) -> None:
    stop, home = tmp_path / "stop", str(terminal.home.folder)
    before = terminal.count("subset_members")
    terminal.set_seed(1)
    reader = terminal.start(sys.executable, "-c", READ_ALL_THE_TIME, home, str(stop))
    reports = terminal.start(sys.executable, "-c", BUILD_REPORTS, home)
    run = terminal.start(CIRCUITSEER, "run")
    succeed(reports)
    assert "computed          subset" in succeed(run)
    stop.touch()
    assert int(succeed(reader).splitlines()[-1]) > 10
    assert len(terminal.home.warehouse.latest_artifacts("subset")) == 2
    assert terminal.count("subset_members") > before
