"""The doctor against planted faults: each is named, mended where that is safe, else left."""

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from jobs.doctor import Diagnosis, examine
from resources import ray_cluster
from resources.dead_runs import HOST_TAG, PID_TAG
from resources.health import check_home, file_system_of
from resources.home import Home
from resources.removal_journal import JOURNAL
from resources.service_health import check_services
from resources.warehouse_schema import MIGRATIONS
from tests.chains import make_chain, make_checkpoint, recorded, stored
from tests.conftest import small_settings, write_settings
from tests.test_cli import circuitseer

NO_PROCESS = 2**22 - 3  # above every PID that Linux gives unless told otherwise


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))  # to be put back
    monkeypatch.setattr(ray_cluster, "CLUSTERS", tmp_path / "clusters")
    folder = tmp_path / "home"
    folder.mkdir()
    write_settings(folder, small_settings())
    made = Home.prepared(folder)
    made.set_environment()
    return made


def diagnosis(home: Home, check: str, **options: bool) -> Diagnosis:
    return next(one for one in examine(home, **options) if one.check == check)


def test_a_sound_home_has_nothing_and_is_left_as_it_is(home: Home) -> None:
    make_checkpoint(home, "a", make_chain(home, "a", ["s1", "s2"]))
    files = {path: path.stat().st_mtime_ns for path in home.artifacts.root.rglob("*")}
    for one in examine(home, repair=True, is_deep=True):
        assert (one.outcome, one.findings) == ("ok", ()), one
    assert files == {path: path.stat().st_mtime_ns for path in home.artifacts.root.rglob("*")}
    assert recorded(home) == stored(home)


# What can be mended -------------------------------------------------------------------------------


def leave_half_an_artifact(home: Home) -> None:
    folder = home.artifacts.root / "subset" / f".subset-b.{NO_PROCESS}.01234567.tmp"
    folder.mkdir()
    (folder / "half.parquet").write_text("half")


def leave_files_without_a_row(home: Home) -> None:
    with home.artifacts.write("subset", "subset-b") as folder:
        (folder / "content.txt").write_text("whole, and never recorded")


def leave_finished_work(home: Home) -> None:
    (home.folder / "work/subset-a").mkdir(parents=True)


def leave_a_dead_run(home: Home) -> None:
    start_run(dg.DagsterRunStatus.STARTED)


def hold_a_slot(home: Home) -> None:
    run_id = start_run(dg.DagsterRunStatus.FAILURE)
    with dg.DagsterInstance.get() as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default("duckdb")
        claim = instance.event_log_storage.claim_concurrency_slot("duckdb", run_id, "step")
        assert claim.is_claimed


def start_run(status: dg.DagsterRunStatus) -> str:
    @dg.job
    def job() -> None:
        pass

    run_id = str(uuid.uuid4())
    tags = {PID_TAG: f"{run_id}:{NO_PROCESS}:", HOST_TAG: socket.gethostname()}
    with dg.DagsterInstance.get() as instance:
        instance.create_run_for_job(job, run_id=run_id, tags=tags, status=status)
    return run_id


def age_the_warehouse(home: Home) -> None:
    older = home.folder.parent / "migrations"
    older.mkdir()
    for path in sorted(MIGRATIONS.glob("*.sql"))[:3]:
        shutil.copy(path, older)
    home.warehouse.path.unlink()
    shutil.rmtree(home.artifacts.root)
    from resources.warehouse import Warehouse

    Warehouse(home.warehouse.path, migrations=older).migrate()


def leave_a_ray_cluster(home: Home) -> None:
    (ray_cluster.CLUSTERS / f"circuitseer-ray-{NO_PROCESS}-01234567").mkdir(parents=True)


MENDED = [
    ("store", leave_half_an_artifact, "was left by a process that died"),
    ("store", leave_files_without_a_row, "has no row in the warehouse"),
    ("store", leave_finished_work, "is work on an artifact that is finished"),
    ("runs", leave_a_dead_run, "its process died"),
    ("runs", hold_a_slot, "holds a slot of a pool"),
    ("warehouse", age_the_warehouse, "schema version is 3, this code's"),
    ("services", leave_a_ray_cluster, "was left by a Ray cluster whose driver died"),
]


@pytest.mark.parametrize(("check", "plant", "said"), MENDED, ids=[m[1].__name__ for m in MENDED])
def test_what_is_safe_to_mend_is_mended_when_asked_to(
    home: Home,
    check: str,
    plant: Callable[[Home], None],
    said: str,
    tell: Callable[..., None],
) -> None:
    make_chain(home, "a", ["s1", "s2"])
    plant(home)
    for _ in range(2):  # looking changes nothing
        found = diagnosis(home, check)
        assert found.outcome == "warning"
        [sentence] = found.findings
        assert said in sentence
    mended = diagnosis(home, check, repair=True)
    assert mended.outcome == "repaired"
    assert mended.findings == (f"{sentence}; repaired",)
    assert all(one.outcome == "ok" for one in examine(home, is_deep=True))
    assert recorded(home) == stored(home)
    tell("doctor", check, plant.__name__.replace("_", " "), "repaired", sentence)


def test_an_artifact_that_is_being_made_is_not_taken_for_a_leftover(home: Home) -> None:
    make_chain(home, "a", ["s1", "s2"])
    with home.artifacts.write("subset", "subset-b") as folder:
        (folder / "content.txt").write_text("being made by this process")
        assert diagnosis(home, "store", repair=True).outcome == "ok"
        assert folder.exists()


# What a person has to decide ----------------------------------------------------------------------


def lose_a_file(home: Home) -> None:
    (home.artifacts.folder("subset", "subset-a") / "content.txt").unlink()


def lose_the_weights(home: Home) -> None:
    [weights] = home.folder.glob("mlartifacts/**/model.safetensors")
    weights.unlink()


def lose_the_corpus(home: Home) -> None:
    columns = {"prompt": "a", "response": "b"}
    corpus = {"source": "files", "paths": ["no/such.jsonl"], "columns": columns}
    write_settings(home.folder, {**small_settings(), "corpus": corpus})


def lose_the_model(home: Home) -> None:
    model = {"source": "local", "path": "models/none"}
    write_settings(home.folder, {**small_settings(), "base_model": model})


def lose_a_benchmark(home: Home) -> None:
    values = small_settings()
    values["decontamination"]["benchmarks"].append({"task": "gsm8k", "path": "no/such.jsonl"})
    write_settings(home.folder, values)


def ask_for_another_device(home: Home) -> None:
    model = {**small_settings()["base_model"], "device": "abacus"}
    write_settings(home.folder, {**small_settings(), "base_model": model})


def tear_the_warehouse(home: Home) -> None:
    home.warehouse.path.write_bytes(b"torn" * 1000)


def use_a_newer_warehouse(home: Home) -> None:
    with duckdb.connect(str(home.warehouse.path)) as connection:
        connection.execute("insert into schema_migrations values (99, now()::timestamp)")


def lose_a_parent(home: Home) -> None:
    with duckdb.connect(str(home.warehouse.path)) as connection:
        connection.execute("delete from artifacts where artifact_id = 'head_ranking-a'")
    shutil.rmtree(home.artifacts.folder("head_ranking", "head_ranking-a"))


def kill_a_removal(home: Home) -> None:
    (home.folder / JOURNAL).write_text("{}")


def take_secrets_in(home: Home) -> None:
    configured = home.folder / "dagster/dagster.yaml"
    configured.write_text("telemetry: {enabled: false}\n")


def tear_the_history(home: Home) -> None:
    with dg.DagsterInstance.get() as instance:
        instance.get_runs()
    [history] = home.folder.glob("dagster/history/runs.db")
    history.write_bytes(b"torn" * 1000)


def tear_mlflow(home: Home) -> None:
    (home.folder / "mlflow.db").write_bytes(b"torn" * 1000)


def ask_for_ray(home: Home) -> None:
    execution = {"scoring": {"backend": "ray"}, "ray": {"address": "127.0.0.1:9"}}
    write_settings(home.folder, {**small_settings(), "execution": execution})


def ask_for_vllm(home: Home) -> None:
    values = small_settings()
    values["evaluation"]["backend"] = "vllm"
    write_settings(home.folder, values)


def point_mlflow_elsewhere(home: Home) -> None:
    execution = {"mlflow_tracking_uri": "http://127.0.0.1:9"}
    write_settings(home.folder, {**small_settings(), "execution": execution})


LEFT = [
    ("store", "warning", lose_a_file, "the files of subset-a should be whole"),
    ("mlflow", "warning", lose_the_weights, "the weights of checkpoint-a should be in MLflow"),
    ("settings", "error", lose_the_corpus, "must name files that exist"),
    ("settings", "error", lose_the_model, "must be a folder with a config.json"),
    ("settings", "error", lose_a_benchmark, "the benchmark gsm8k must name files that exist"),
    ("device", "error", ask_for_another_device, "must be a device of this machine"),
    ("warehouse", "error", tear_the_warehouse, "must be a DuckDB file"),
    ("warehouse", "error", use_a_newer_warehouse, "schema version must be at most"),
    ("warehouse", "warning", lose_a_parent, "sample_scores-a should have all its parents"),
    ("removal", "warning", kill_a_removal, "a removal was killed half-way"),
    ("runs", "warning", take_secrets_in, "Dagster should store no secret of the environment"),
    ("mlflow", "error", point_mlflow_elsewhere, "MLflow at http://127.0.0.1:9 must answer"),
    ("mlflow", "error", tear_mlflow, "file is not a database"),
    ("runs", "error", tear_the_history, "file is not a database"),
    ("services", "error", ask_for_ray, "execution.ray.address must be that of a running Ray"),
    ("services", "error", ask_for_vllm, "vllm must be installed; run `uv pip install -e '.[vllm]'"),
]


@pytest.mark.parametrize(
    ("check", "outcome", "plant", "said"), LEFT, ids=[entry[2].__name__ for entry in LEFT]
)
def test_what_needs_a_decision_is_named_and_left(
    home: Home,
    check: str,
    outcome: str,
    plant: Callable[[Home], None],
    said: str,
    tell: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(ray_cluster, "ANSWER_WITHIN_S", 5)
    make_checkpoint(home, "a", make_chain(home, "a", ["s1", "s2"]))
    plant(home)
    for repair in (False, True):
        found = diagnosis(home, check, repair=repair)
        assert found.outcome == outcome
        assert said in found.findings[0]
    tell("doctor", check, plant.__name__.replace("_", " "), outcome, found.findings[0])


def test_a_changed_file_of_the_same_size_is_found_by_reading_it(home: Home) -> None:
    make_chain(home, "a", ["s1", "s2"])
    path = home.artifacts.folder("subset", "subset-a") / "content.txt"
    path.write_text(path.read_text()[::-1])
    assert diagnosis(home, "store").outcome == "ok"
    assert diagnosis(home, "store", is_deep=True).outcome == "warning"


def test_a_warehouse_that_another_process_holds_is_named_with_it(home: Home) -> None:
    make_chain(home, "a", ["s1", "s2"])
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(home.warehouse.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        [sentence] = diagnosis(home, "warehouse").findings
        holder.terminate()
    assert f"the process with PID {holder.pid} holds it" in sentence


def test_a_home_that_cannot_be_written_or_is_far_away_is_told(tmp_path: Path) -> None:
    told = [finding.said for finding in check_home(Home(path="/proc"))]
    assert any("the home /proc must be writable" in sentence for sentence in told)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    assert file_system_of(tmp_path / "home", mounts) == "nfs4"
    assert file_system_of(Path("/elsewhere"), mounts) == "ext4"
    assert file_system_of(tmp_path, tmp_path / "none") == ""


def test_on_a_file_system_that_cannot_be_written_every_check_says_what_it_found(home: Home) -> None:
    make_checkpoint(home, "a", make_chain(home, "a", ["s1", "s2"]))
    folder = str(home.folder)
    commands = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]]
    done = [subprocess.run(command, capture_output=True, check=False) for command in commands]
    try:
        if any(one.returncode for one in done):
            pytest.skip("nothing can be mounted here")
        told = {one.check: one for one in examine(home, repair=True)}
    finally:
        if not done[0].returncode:
            subprocess.run(["umount", folder], check=True)
    assert "must be writable, and is not (Read-only file system)" in told["home"].findings[0]
    assert told["runs"].outcome == "error"
    assert "Read-only file system; free or correct it" in told["runs"].findings[0]
    for check in ("versions", "settings", "device", "removal"):
        assert told[check].outcome == "ok", told[check]


def test_packages_that_do_not_fit_are_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["duckdb>=99", "no-such-package", "pyyaml>=6", 'other; python_version < "3"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = diagnosis(home, "versions")
    assert found.outcome == "error"
    assert [sentence.split(" must")[0] for sentence in found.findings] == [
        "duckdb",
        "no-such-package",
    ]


def test_the_extra_of_dagsters_storage_is_asked_for_and_no_other(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.folder / "dagster/dagster.yaml").write_text("storage: {postgres: {}}\n")
    wanted = ["none-of-all", 'none-of-it; extra == "postgres"', 'none-of-ray; extra == "ray"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    [finding] = check_services(home)
    assert finding.said.startswith("none-of-it must be installed; run `uv pip install -e '.[postg")


def test_the_command_tells_it_and_its_status_says_whether_all_is_well(home: Home) -> None:
    make_chain(home, "a", ["s1", "s2"])
    leave_half_an_artifact(home)
    done = circuitseer(home.folder, "doctor", "--repair", "--json")
    assert done.returncode == 0, done.stdout
    told = {one["check"]: one["outcome"] for one in json.loads(done.stdout)}
    assert told.pop("store") == "repaired"
    assert set(told.values()) == {"ok"}
    tear_the_warehouse(home)
    done = circuitseer(home.folder, "doctor")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "must be a DuckDB file" in done.stdout
    assert "the warehouse comes first" in done.stdout
