"""Backing up a real home while others work in it: the copy is a home, whole, wherever it lies."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from circuitseer_assets.errors import HousekeepingError
from circuitseer_assets.settings import PROJECT_ROOT
from jobs.backup import back_up
from jobs.lineage import read_lineage
from jobs.release import release_checkpoint
from resources.home import Home
from resources.snapshots import copy_sqlite
from tests.chains import make_artifact, make_chain, make_checkpoint, model_of, recorded, stored
from tests.conftest import small_settings, write_settings
from tests.test_cli import circuitseer

# Makes one artifact after the other, each with rows of its own, until it is stopped.
WRITER = """
import itertools, sys
from pathlib import Path
from resources.home import Home
from tests.chains import append_scores, make_chain
home = Home(path=sys.argv[1])
for i in itertools.count():
    make_chain(home, f"{i:04}", [f"{i}-a", f"{i}-b"], scorer="one")
    print(i, flush=True)
"""
# Commits and is killed before DuckDB's log is worked into the file.
KILLED_WRITER = """
import os, signal, sys
from resources.home import Home
from tests.chains import make_artifact
home = Home(path=sys.argv[1])
with home.warehouse.connect() as connection:
    connection.execute("pragma disable_checkpoint_on_shutdown")
    connection.execute("insert into base_models values ('digest', 'local', 'late', null)")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_BACKUP = """
import os, signal, sys
from pathlib import Path
import jobs.backup
from resources.home import Home
jobs.backup._refuse_made_again = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
jobs.backup.back_up(Home(path=sys.argv[1]), Path(sys.argv[2]))
"""


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def new_home(folder: Path) -> Home:
    folder.mkdir()
    write_settings(folder, small_settings())
    return Home.prepared(folder)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_home(tmp_path / "home")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with one released checkpoint; tests only read it."""
    home = new_home(tmp_path_factory.mktemp("trained") / "home")
    make_checkpoint(home, "one", make_chain(home, "one", ["a", "b"]))
    release_checkpoint(home, "checkpoint-one", "solver")
    return home


def assert_whole(home: Home) -> None:
    for artifact in home.warehouse.artifacts():
        home.artifacts.verify(artifact.stage, artifact.artifact_id)
        assert read_lineage(home, artifact.artifact_id).missing == ()
    assert stored(home) == recorded(home)


def test_a_copy_made_while_another_process_commits_is_whole(home: Home, tmp_path: Path) -> None:
    writer = python(WRITER, home.path)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()  # it is at work
        counts = []
        for number in range(3):
            done = back_up(home, tmp_path / f"backup-{number}")
            assert done.incomplete == ()
            counts.append(done.num_artifacts)
            while len(recorded(home)) <= counts[-1]:  # lines may be of what was made before
                assert writer.stdout.readline()
        assert writer.poll() is None, "it must have gone on all the while"
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert 5 <= counts[0] < counts[1] < counts[2]
    for number, count in enumerate(counts):
        copy = Home(path=str(tmp_path / f"backup-{number}"))
        assert len(recorded(copy)) == count
        assert_whole(copy)
        # A chain's rows are committed before its artifacts: of each artifact all are there.
        subsets = copy.warehouse.query("select subset_id from subset_members")["subset_id"]
        made = {one for one in recorded(copy) if one.startswith("subset-")}
        assert set(subsets.to_pylist()) == made


def test_what_a_killed_writer_committed_is_in_the_copy(home: Home, tmp_path: Path) -> None:
    make_artifact(home, "corpus-one")
    writer = python(KILLED_WRITER, home.path)
    assert writer.wait() == -signal.SIGKILL
    assert writer.stdout is not None
    writer.stdout.close()
    assert (home.folder / "warehouse.duckdb.wal").exists()
    back_up(home, tmp_path / "backup")
    copy = Home(path=str(tmp_path / "backup"))
    assert copy.warehouse.query("select name from base_models")["name"].to_pylist() == ["late"]


def test_nobody_writes_to_the_warehouse_while_its_file_is_read(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_artifact(home, "corpus-one")
    copy_file, refused = shutil.copyfile, []

    def copy_while_another_opens_it(source: Path, destination: Path, **how: bool) -> None:
        if source == home.warehouse.path:
            program = f"import duckdb; duckdb.connect({str(source)!r})"
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=False
            )
            refused.append("Could not set lock" in done.stderr)
        copy_file(source, destination, **how)

    monkeypatch.setattr("resources.warehouse.shutil.copyfile", copy_while_another_opens_it)
    back_up(home, tmp_path / "backup")
    assert refused == [True]


def test_a_sqlite_database_is_copied_at_one_moment(tmp_path: Path) -> None:
    """Two tables that are always equal, by a writer that writes one after the other."""
    database = tmp_path / "live.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("create table a (n integer); create table b (n integer);")
    writer = python(
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n"
        "while True:\n"
        "    c.execute('begin immediate')\n"
        "    for t in 'ab': c.execute(f'insert into {t} values (1)')\n"
        "    c.execute('commit')\n"
        "    time.sleep(0.005)\n",
        database,
    )
    try:
        counts = []
        for number in range(5):
            copy_sqlite(database, tmp_path / f"{number}.db")
            with closing(sqlite3.connect(tmp_path / f"{number}.db")) as copy:
                sql = "select (select count(*) from a), (select count(*) from b)"
                [(in_a, in_b)] = copy.execute(sql).fetchall()
            assert in_a == in_b
            counts.append(in_a)
            time.sleep(0.05)
        assert counts[-1] > counts[0]
    finally:
        writer.kill()
        writer.wait()


def test_a_killed_backup_leaves_only_what_does_not_look_finished(
    trained: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    killed = python(KILLED_BACKUP, trained.path, folder)
    assert killed.wait() == -signal.SIGKILL
    assert killed.stdout is not None
    killed.stdout.close()
    assert [path.name for path in tmp_path.iterdir()] == ["backup.partial"]
    (tmp_path / "backup.partial" / "left_behind").touch()
    back_up(trained, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]
    assert not (folder / "left_behind").exists()


def assert_loads_its_checkpoint(home: Home) -> None:
    """By our own way, and by the registered model's URI, from the home's own files."""
    model = model_of(home, "checkpoint-one")
    folder = home.tracking().model_folder(f"models:/{model}")
    assert folder.is_relative_to(home.folder)
    assert home.tracking().model_folder("models:/solver/1").is_relative_to(home.folder)
    assert read_lineage(home, "models:/solver/1").artifact_id == "checkpoint-one"
    with closing(sqlite3.connect(home.folder / "mlflow.db")) as database:
        runs = database.execute("select artifact_uri from runs").fetchall()
    assert all(uri.startswith(home.folder.as_uri()) for (uri,) in runs)


def test_a_backup_loads_its_checkpoint_where_it_was_made_and_where_it_is_moved(
    tmp_path: Path,
) -> None:
    home = new_home(tmp_path / "home")
    make_checkpoint(home, "one", make_chain(home, "one", ["a", "b"]))
    release_checkpoint(home, "checkpoint-one", "solver")
    back_up(home, tmp_path / "backup")
    shutil.rmtree(home.folder)  # nothing of it can help
    with closing(sqlite3.connect(tmp_path / "backup" / "mlflow.db")) as database:
        [(address,)] = database.execute("select artifact_location from logged_models").fetchall()
    assert address.startswith((tmp_path / "backup").as_uri())
    assert_loads_its_checkpoint(Home(path=str(tmp_path / "backup")))
    (tmp_path / "backup").rename(tmp_path / "moved")
    moved = Home(path=str(tmp_path / "moved"))
    assert_loads_its_checkpoint(moved)
    assert_whole(moved)


def test_a_home_copied_as_a_folder_loads_its_own_checkpoint(trained: Home, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "copy")
    assert_loads_its_checkpoint(Home(path=str(tmp_path / "copy")))
    assert_loads_its_checkpoint(trained)  # whose own addresses nobody touched


def test_hard_links_share_what_never_changes_and_nothing_else(
    trained: Home, tmp_path: Path
) -> None:
    back_up(trained, tmp_path / "backup", hard_links=True)
    shared = {
        path.relative_to(tmp_path / "backup").parts[0]
        for path in (tmp_path / "backup").rglob("*")
        if path.is_file() and path.stat().st_nlink > 1
    }
    assert shared == {"artifacts", "mlartifacts"}


def test_an_artifact_that_is_not_whole_is_told(home: Home, tmp_path: Path) -> None:
    make_checkpoint(home, "one", make_chain(home, "one", ["a", "b"]))
    (home.artifacts.folder("corpus", "corpus-one") / "content.txt").write_text("torn")
    weights = next((home.folder / "mlartifacts").rglob("*.safetensors"))
    weights.write_bytes(b"torn")
    done = back_up(home, tmp_path / "backup")
    assert sorted(done.incomplete) == ["checkpoint-one", "corpus-one"]


def test_stores_on_servers_are_told(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    execution = {"mlflow_tracking_uri": "http://127.0.0.1:9"}
    write_settings(home.folder, {**small_settings(), "execution": execution})
    with (home.folder / "dagster" / "dagster.yaml").open("a") as file:
        file.write("\nstorage: {postgres: {}}\n")
    mlflow, dagster = back_up(home, tmp_path / "backup").not_included
    assert mlflow.startswith("MLflow at http://127.0.0.1:9")
    assert dagster.startswith("Dagster's storage")


def test_where_a_backup_cannot_lie_is_refused(home: Home, tmp_path: Path) -> None:
    make_artifact(home, "corpus-one")
    before = sorted(home.folder.rglob("*"))
    with pytest.raises(HousekeepingError, match="FOLDER must not be there yet"):
        back_up(home, tmp_path)
    with pytest.raises(HousekeepingError, match="FOLDER must lie outside the home"):
        back_up(home, home.folder / "backup")
    (tmp_path / "mine.partial").mkdir()
    with pytest.raises(HousekeepingError, match="must be an unfinished backup to be replaced"):
        back_up(home, tmp_path / "mine")
    made = set(home.folder.rglob("*")) - set(before)
    assert {path.name for path in made} <= {"locks", "housekeeping.lock"}


def test_the_command_says_where_the_copy_lies(home: Home) -> None:
    make_artifact(home, "corpus-one")
    done = circuitseer(home.folder, "backup", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["dry_run"], said["num_artifacts"]) == (True, 1)
    backups = home.folder.parent / "backups"
    assert Path(said["folder"]).parent == backups
    assert not backups.exists()
    done = circuitseer(home.folder, "backup")
    [made] = backups.iterdir()
    assert done.stdout.strip() == str(made)
    assert json.loads((made / "backup.json").read_text())["num_artifacts"] == 1
    assert made.name.startswith("home-20")
