"""Faults from outside, one after the other in one home: each is told, and nothing of it is left."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from circuitseer_assets.settings import PROJECT_ROOT
from jobs.doctor import examine
from resources.home import Home
from resources.warehouse_schema import apply_migrations, list_migrations
from tests.conftest import small_settings, write_settings
from tests.test_kills import wait_until_at_work

pytestmark = pytest.mark.long

CIRCUITSEER = str(Path(sys.executable).with_name("circuitseer"))
# Smaller than what Dagster writes first, and than what the checkpoint writes.
NOTHING_FITS, NO_CHECKPOINT_FITS = 200 * 1024, 4 * 1024 * 1024


class Faulty:
    """A home, and commands in it while something is wrong."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.home = Home.prepared(folder)
        self.write()

    def write(self, **slices: dict[str, Any]) -> None:
        values = small_settings()
        changed = {name: {**values.get(name, {}), **slice_} for name, slice_ in slices.items()}
        write_settings(self.home.folder, {**values, **changed})

    def start(
        self, *, home: str | None = None, limit_bytes: int | None = None
    ) -> subprocess.Popen[str]:
        def limit() -> None:
            if limit_bytes is not None:
                # A file that may not grow any further is, to whoever writes it, a full disk.
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        return subprocess.Popen(
            [CIRCUITSEER, "run"],
            cwd=PROJECT_ROOT,
            env={
                **os.environ,
                "CIRCUITSEER_HOME": home or str(self.home.folder),
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=limit,
        )

    def run(self, **options: Any) -> tuple[int, str]:
        """Returns the status of a run and its last line, after seeing that it was told in one."""
        process = self.start(**options)
        said, _ = process.communicate(timeout=600)
        assert "Traceback" not in said, said[-3000:]
        return process.returncode, said.strip().splitlines()[-1]

    def ids(self) -> dict[str, str]:
        return {a.artifact_id: a.stage for a in self.home.warehouse.artifacts()}

    def assert_nothing_half_made(self) -> None:
        for artifact in self.home.warehouse.artifacts():
            self.home.artifacts.verify(artifact.stage, artifact.artifact_id)
        assert not list(self.home.artifacts.root.rglob("*.tmp"))
        stored = {path.name for path in self.home.artifacts.root.glob("*/*")}
        assert stored == set(self.ids())


@contextlib.contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yields the process that keeps a warehouse locked until the end, once it does."""
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        assert holder.poll() is None
        holder.stdin.write("\n")


def make_older(path: Path, *, version: int) -> None:
    """Makes the warehouse what an older CircuitSeer had made of the same rows."""
    newer = path.rename(path.with_suffix(".newer"))
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(path) as connection:
        for known, file in list_migrations().items():
            if known <= version:
                shutil.copy(file, folder)
        apply_migrations(connection, Path(folder))
        connection.execute(f"attach '{newer}' as newer (read_only)")
        tables = connection.execute(
            "select table_name from duckdb_tables() where database_name = current_database() "
            "and table_name != 'schema_migrations' order by table_oid"
        ).fetchall()
        for (table,) in tables:
            columns = connection.execute(f"describe {table}").fetchall()
            names = ", ".join(name for name, *_ in columns)
            connection.execute(f"insert into {table} ({names}) select {names} from newer.{table}")
    newer.unlink()


def test_faults_are_told_survived_and_leave_nothing(
    tmp_path: Path,
    home_folder: Path,
    first_run: Any,
    tell: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # to be put back
    faulty = Faulty(tmp_path / "home")

    def expect(fault: str, status: int, words: str, got: tuple[int, str], then: str) -> None:
        assert got[0] == status, got
        assert words in got[1]
        tell("faults", fault, f"status {status}", then, got[1].replace(str(tmp_path), "…")[:160])

    told = faulty.run(home="/proc/circuitseer")
    expect("a home that cannot be written", 2, "/proc/circuitseer", told, "nothing was made")

    told = faulty.run(limit_bytes=NOTHING_FITS)
    expect("a disk that is full", 2, "`circuitseer doctor`", told, "nothing was made")
    told = faulty.run(limit_bytes=NO_CHECKPOINT_FITS)
    expect("a disk that fills up", 2, "File too large", told, "what was made before is kept")
    faulty.assert_nothing_half_made()
    assert "subset" in faulty.ids().values()
    assert "checkpoint" not in faulty.ids().values()

    faulty.write(execution={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    told = faulty.run()
    expect("MLflow that does not answer", 2, "MLflow at http://127.0.0.1:9", told, "kept")
    faulty.assert_nothing_half_made()

    faulty.write()
    process = faulty.start()
    wait_until_at_work(faulty.home, 0, process)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    last = said.strip().splitlines()[-1]
    told = process.returncode, last
    expect("SIGTERM while it trains", 130, "goes on where it was", told, "training goes on")
    faulty.assert_nothing_half_made()

    with holding(faulty.home.warehouse.path) as holder:
        process = faulty.start()
        assert process.stdout is not None
        waits, said = f"the warehouse, which the process with PID {holder.pid} holds", ""
        for line in process.stdout:  # to its end, where it does not wait
            said = " ".join((said + line).split()) + " "
            if waits in said:
                break
        assert waits in said, said
        assert process.poll() is None
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    tell("faults", "a warehouse that is held", "status 0", "it said so and waited", "")
    made = {a.artifact_id for a in Home.prepared(home_folder).warehouse.artifacts()}
    assert set(faulty.ids()) <= made

    [scores] = faulty.home.folder.glob("artifacts/sample_scores/*/scores.parquet")
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-100])
    faulty.write(selection={"seed": 1})
    told = faulty.run()
    assert told[0] == 0, told
    assert scores.read_bytes() == whole
    tell("faults", "a torn Parquet file", "status 0", "it was made anew, with the same bytes", "")

    [weights, *_] = sorted(faulty.home.folder.glob("mlartifacts/models/*/artifacts/model/*.safet*"))
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    faulty.write()
    told = faulty.run()
    assert told[0] == 0, told
    tell("faults", "a flipped bit in the weights", "status 0", "they were trained anew", "")

    made_before = faulty.ids()
    make_older(faulty.home.warehouse.path, version=6)
    told = faulty.run()
    assert told[0] == 0, told
    assert faulty.ids() == made_before
    tell("faults", "an older warehouse", "status 0", "it was brought up to date", "")
    with duckdb.connect(faulty.home.warehouse.path) as connection:
        connection.execute("insert into schema_migrations values (999, now())")
    told = faulty.run()
    expect("a newer warehouse", 2, "use the newer CircuitSeer", told, "nothing was changed")
    with duckdb.connect(faulty.home.warehouse.path) as connection:
        connection.execute("delete from schema_migrations where version = 999")

    torn = tmp_path / "torn_model"
    shutil.copytree(PROJECT_ROOT / "models/tiny", torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    faulty.write(base_model={"path": str(torn)})
    told = faulty.run()
    expect("a torn base model", 2, "SafetensorError", told, "nothing was ranked by it")
    faulty.assert_nothing_half_made()
    faulty.write()
    assert faulty.run()[0] == 0
    for diagnosis in examine(faulty.home, is_deep=True):
        assert diagnosis.outcome == "ok", diagnosis
