"""kill -9 at random moments: the result is an undisturbed run's, and little is done again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from circuitseer_assets.settings import PROJECT_ROOT
from jobs.doctor import examine
from resources.home import Home
from resources.warehouse_schema import OWNED_TABLES, SHARED_TABLES
from tests.conftest import small_settings, write_settings

pytestmark = pytest.mark.long

SHARD_SAMPLES, SAVE_STEPS = 16, 4
NUM_STEPS = small_settings()["training"]["max_steps"]
NUM_STAGE_KILLS, NUM_RUN_KILLS = 32, 8
# Their content names the run that made them; that of every other stage is the same after a kill.
TELL_THE_RUN = ("checkpoint", "audit")
# What tells one run from another, and no other thing of an artifact.
OF_THE_RUN = {
    "artifacts": ("dagster_run_id", "mlflow_run_id", "created_at"),
    "artifact_costs": ("duration_s", "num_forwards", "num_tokens"),
    "artifact_evidence": ("manifest_sha256",),  # of files that tell how long it took
    "checkpoints": ("mlflow_model_uri", "duration_s"),
}


@pytest.fixture(autouse=True)
def _own_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))  # to be put back


def make_home(folder: Path, *, own_process: bool = False) -> Home:
    folder.mkdir()
    values = small_settings()
    placement = {"own_process": own_process}
    values["execution"] = {"shard_samples": SHARD_SAMPLES, "training": placement}
    values["training"]["save_interval_steps"] = SAVE_STEPS
    write_settings(folder, values)
    return Home.prepared(folder)


def rows_of(home: Home) -> dict[str, list[str]]:
    """Returns the rows of every table but the marts, without what differs from run to run."""
    found = {}
    for name in ("artifacts", *OWNED_TABLES, *SHARED_TABLES):
        rows = home.warehouse.query(f'select * from "{name}"').to_pylist()
        if name == "artifacts":
            rows = [{**r, "data_version": ""} if r["stage"] in TELL_THE_RUN else r for r in rows]
        kept = [{k: v for k, v in row.items() if k not in OF_THE_RUN.get(name, ())} for row in rows]
        found[name] = sorted(json.dumps(row, sort_keys=True, default=str) for row in kept)
    return found


def assert_equal(one: Home, other: Home) -> None:
    rows, others = rows_of(one), rows_of(other)
    for name in rows:
        assert rows[name] == others[name], name
    assert weights_of(one) == weights_of(other)


def weights_of(home: Home) -> list[str]:
    return sorted(
        path.read_text() for path in home.folder.glob("artifacts/checkpoint/*/weights.json")
    )


def assert_nothing_is_left_behind(home: Home) -> None:
    for diagnosis in examine(home, is_deep=True):
        assert diagnosis.outcome == "ok", diagnosis
    assert not list((home.folder / "work").glob("*"))
    assert not list(home.artifacts.root.rglob("*.tmp"))
    tracking = home.tracking()
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    for checkpoint_id in home.warehouse.models_of_checkpoints():
        made_by = home.warehouse.find_artifact(checkpoint_id).mlflow_run_id
        losses = client.get_metric_history(made_by, "loss")
        # Also those that an earlier attempt had reported.
        assert {loss.step for loss in losses} == set(range(1, NUM_STEPS + 1))
    models = client.search_logged_models([experiment.experiment_id])
    known = set(home.warehouse.models_of_checkpoints().values())
    assert {model.model_id for model in models} == known
    assert {path.name for path in (home.folder / "mlartifacts/models").iterdir()} == known
    for lock in (home.folder / "locks").glob("*.lock"):
        with subprocess.Popen(["flock", "--nonblock", str(lock), "true"]) as taken:
            assert taken.wait() == 0, lock


# One stage after the other ------------------------------------------------------------------------


def make_stages(home: Home, log: Path, kills: int, durations: dict[str, float]) -> Counter[str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.killed_stages", str(home.folder), str(log)),
            *(str(kills), "7", json.dumps(durations)),
        ],
        cwd=PROJECT_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Counter(json.loads(done.stdout.splitlines()[-1]))


def durations_in(log: Path) -> dict[str, float]:
    begun, took = {}, {}
    for line in log.read_text().splitlines():
        word, stage, *at = line.split()
        if word == "begin":
            begun[stage] = float(at[0])
        elif word == "end":
            took[stage] = float(at[0]) - begun[stage]
    return took


def work_in(log: Path) -> Counter[str]:
    words = (line.split()[0] for line in log.read_text().splitlines())
    return Counter(word for word in words if word in ("scored", "ablated", "stepped"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    """A home whose stages nobody killed, and the log of its work."""
    folder = tmp_path_factory.mktemp("undisturbed")
    home, log = make_home(folder / "home"), folder / "log"
    make_stages(home, log, 0, {})
    return home, log


def test_stages_that_are_killed_again_and_again_give_what_they_would_have_given(
    undisturbed: tuple[Home, Path],
    tmp_path: Path,
    tell: Callable[..., None],
) -> None:
    whole, log = undisturbed
    torn, durations = make_home(tmp_path / "torn"), durations_in(log)
    kills = make_stages(torn, tmp_path / "torn.log", NUM_STAGE_KILLS, durations)
    assert kills.total() >= NUM_STAGE_KILLS
    assert_equal(torn, whole)
    assert_nothing_is_left_behind(torn)

    needed, done = work_in(log), work_in(tmp_path / "torn.log")
    assert min(needed.values()) > 0
    assert done["scored"] - needed["scored"] <= kills["sample_scores"] * SHARD_SAMPLES
    assert done["stepped"] - needed["stepped"] <= kills["checkpoint"] * SAVE_STEPS
    # A measurement is written as soon as it is made: at most the one at work is made again.
    assert done["ablated"] - needed["ablated"] <= kills["head_ranking"]
    redone = {
        "head_ranking": f"{done['ablated'] - needed['ablated']} of {needed['ablated']} ablations",
        "sample_scores": f"{done['scored'] - needed['scored']} of {needed['scored']} samples",
        "checkpoint": f"{done['stepped'] - needed['stepped']} of {needed['stepped']} steps",
    }
    for stage, took in durations.items():
        again = f"done again: {redone.get(stage, 'the stage')}"
        tell("kills in a stage", stage, f"{took:.1f} s", f"{kills[stage]} kills", again)


# The whole run ------------------------------------------------------------------------------------


def start(home: Home) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("circuitseer")), "run"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "CIRCUITSEER_HOME": str(home.folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def num_runs(home: Home) -> int:
    return len(list((home.folder / "dagster/history/runs").glob("*-*.db")))


def wait_until_at_work(home: Home, num_artifacts: int, process: subprocess.Popen[str]) -> None:
    """Returns once the process has begun a run and the home has so many artifacts."""
    before = num_runs(home)
    while (
        num_runs(home) == before or len(list(home.artifacts.root.glob("*/[!.]*"))) < num_artifacts
    ):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)


def training_processes(home: Home) -> list[psutil.Process]:
    work = f"{home.folder / 'work'}/"
    everyone = psutil.process_iter(["cmdline"])
    return [p for p in everyone if any(w.startswith(work) for w in p.info["cmdline"] or ())]


def wait_until_alone(home: Home) -> None:
    """Returns once no process trains in the home any more."""
    end = time.monotonic() + 5
    while left := training_processes(home):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def runs_of(home: Home) -> list[Any]:
    home.set_environment()
    with dg.DagsterInstance.get() as instance:
        return list(instance.get_runs())


def test_a_run_that_is_killed_again_and_again_ends_as_it_would_have(
    undisturbed: tuple[Home, Path],
    tmp_path: Path,
    tell: Callable[..., None],
) -> None:
    # Trained by a process of its own, which has to go with the run and be gone on with.
    torn = make_home(tmp_path / "torn", own_process=True)
    lots = random.Random(11)
    for number in range(NUM_RUN_KILLS):
        killed = start(torn)
        wait_until_at_work(torn, number, killed)
        time.sleep(lots.uniform(0, 1.5))
        assert killed.poll() is None, "it ended before it was killed"
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        wait_until_alone(torn)
        stages = sorted(path.parent.name for path in torn.artifacts.root.glob("*/[!.]*"))
        tell("kills of a run", f"kill {number + 1}", f"{len(stages)} artifacts", ", ".join(stages))
    last = start(torn)
    said, _ = last.communicate()
    assert last.returncode == 0, said
    assert_equal(torn, undisturbed[0])
    assert_nothing_is_left_behind(torn)
    statuses = Counter(run.status for run in runs_of(torn))
    assert statuses.keys() <= {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}
