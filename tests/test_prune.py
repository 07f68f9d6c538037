"""Pruning a real home: what stays is whole, what goes is gone, and a kill does no harm."""

import json
import pkgutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitseer_assets.errors import ArtifactError, HousekeepingError, WarehouseError
from jobs import prune as pruning
from jobs.lineage import read_lineage
from jobs.prune import Pruned, describe_pruned
from jobs.release import release_checkpoint
from resources.dead_runs import process_tags
from resources.home import Home
from resources.processes import if_free
from resources.removal_journal import JOURNAL
from resources.tracking import as_tracking_uri
from tests.chains import (
    append_scores,
    make_artifact,
    make_chain,
    make_checkpoint,
    model_of,
    recorded,
    show,
    stored,
)
from tests.conftest import small_settings, write_settings
from tests.test_cli import circuitseer

NO_REPORTS = dg.Definitions()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))  # to be put back
    folder = tmp_path / "home"
    folder.mkdir()
    write_settings(folder, small_settings())
    return Home.prepared(folder)


def prune(home: Home, keep: int = 0, **more: Any) -> Pruned:
    return pruning.prune(NO_REPORTS, home, num_newest=keep, **more)


def chain_of(name: str) -> set[str]:
    stages = ("corpus", "probe_set", "head_ranking", "sample_scores", "subset")
    return {f"{stage}-{name}" for stage in stages}


def assert_whole(home: Home) -> None:
    """Every artifact has its files and its parents, and no folder is without an artifact."""
    assert stored(home) == recorded(home)
    for artifact in home.warehouse.artifacts():
        home.artifacts.verify(artifact.stage, artifact.artifact_id)
        assert read_lineage(home, artifact.artifact_id).missing == ()


def test_what_is_new_shown_released_exported_or_asked_for_stays_and_the_rest_goes(
    home: Home,
) -> None:
    names = ["old", "released", "exported", "asked", "cell", "shown", "between", "new"]
    subsets = {name: make_chain(home, name, [f"{name}-0", f"{name}-1"]) for name in names}
    make_checkpoint(home, "old", subsets["old"])
    make_checkpoint(home, "released", subsets["released"])
    release_checkpoint(home, "checkpoint-released", "solver")
    (home.folder / "exports").mkdir()
    (home.folder / "exports" / f"{subsets['exported']}.jsonl").write_text("{}")
    show(home, ["subset"], subsets["between"])  # shown once, no more
    show(home, ["subset"], subsets["shown"])
    show(home, ["sweep", "subset"], subsets["cell"], partition="in_use|0.1")
    show(home, ["sweep", "subset"], subsets["old"], partition="in_use|0.2")
    show(home, ["sweep", "subset"], subsets["shown"], partition="in_use|0.2")
    gone_model, kept_model = model_of(home, "checkpoint-old"), model_of(home, "checkpoint-released")

    before = recorded(home)
    said = prune(home, 1, keep_subsets=[subsets["asked"]], dry_run=True)
    assert recorded(home) == before == stored(home)
    done = prune(home, 1, keep_subsets=[subsets["asked"]])
    gone = chain_of("old") | chain_of("between") | {"checkpoint-old"}
    assert recorded(home) == before - gone
    assert_whole(home)
    assert (done.removed, done.num_rows, done.kept) == (said.removed, said.num_rows, said.kept)
    assert {stage: amount.count for stage, amount in done.removed.items()} == {
        "corpus": 2,
        "probe_set": 2,
        "head_ranking": 2,
        "sample_scores": 2,
        "subset": 2,
        "checkpoint": 1,
    }
    models = home.folder / "mlartifacts" / "models"
    assert [path.name for path in models.iterdir()] == [kept_model] != [gone_model]
    assert home.tracking().model_folder(f"models:/{kept_model}").is_dir()

    again = prune(home, 1, keep_subsets=[subsets["asked"]])
    assert (again.removed, again.num_rows, again.num_mlflow_runs) == ({}, {}, 0)
    assert not (home.folder / JOURNAL).exists()


def test_the_size_told_is_the_size_freed(home: Home) -> None:
    make_checkpoint(home, "old", make_chain(home, "old", ["a", "b"]))

    def num_bytes() -> int:
        folders = (home.folder / "artifacts", home.folder / "mlartifacts")
        return sum(f.stat().st_size for d in folders for f in d.rglob("*") if f.is_file())

    before = num_bytes()
    done = prune(home)
    assert done.as_json()["num_bytes_removed"] == before - num_bytes() == before
    assert done.removed["checkpoint"].num_bytes > 4_000_000
    assert "removed 6 artifacts of 4.7 MB, 17 rows, 1 MLflow runs and 1 models" in describe_pruned(
        done
    )


def test_mlflow_forgets_what_was_removed_and_nothing_a_user_put_aside(home: Home) -> None:
    make_checkpoint(home, "old", make_chain(home, "old", ["a", "b"]))
    client = home.tracking().client()
    mine = client.create_experiment("mine")
    run_id = client.create_run(mine).info.run_id
    client.delete_run(run_id)
    client.delete_experiment(client.create_experiment("aside"))
    done = prune(home)
    assert (done.num_mlflow_runs, done.num_mlflow_models, done.left) == (1, 1, ())
    with closing(sqlite3.connect(home.folder / "mlflow.db")) as database:
        assert database.execute("select run_uuid from runs").fetchall() == [(run_id,)]
        assert database.execute("select count(*) from logged_models").fetchone() == (0,)
        names = database.execute("select name from experiments order by name").fetchall()
    assert [name for (name,) in names] == ["Default", "aside", "circuitseer", "mine"]


def test_a_model_registered_by_hand_keeps_what_it_stands_on(home: Home) -> None:
    for name in ("by_model", "by_run", "free"):
        make_checkpoint(home, name, make_chain(home, name, [f"{name}-0", f"{name}-1"]))

    tracking = home.tracking()
    client = tracking.client()
    by_run = home.warehouse.find_artifact("checkpoint-by_run")
    assert by_run is not None
    with as_tracking_uri(tracking.uri):
        client.create_registered_model("hand")
        client.create_model_version("hand", f"models:/{model_of(home, 'checkpoint-by_model')}")
        client.create_model_version("hand", "elsewhere", run_id=by_run.mlflow_run_id)
    prune(home)
    kept = {"checkpoint-by_model", "checkpoint-by_run"}
    assert recorded(home) == kept | chain_of("by_model") | chain_of("by_run")
    assert_whole(home)


SAMPLES = [f"s{i}" for i in range(8)]
CORPUS = st.lists(st.sampled_from(SAMPLES), min_size=2, unique=True)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    corpora=st.lists(st.tuples(CORPUS, st.sampled_from(["x", "y"])), min_size=1, max_size=3),
    num_kept=st.integers(0, 2),
)
def test_shared_rows_go_with_the_last_that_needs_them(
    tmp_path_factory: pytest.TempPathFactory, corpora: list[Any], num_kept: int
) -> None:
    home = Home.prepared(tmp_path_factory.mktemp("home"))
    for i, (samples, scorer) in enumerate(corpora):
        make_chain(home, str(i), samples, scorer=scorer)
    append_scores(home, "of-a-killed-run", SAMPLES)
    going = range(max(len(corpora) - num_kept, 0))
    home.warehouse.remove([i for one in going for i in chain_of(str(one))])

    stays = [corpora[i] for i in range(len(corpora)) if i not in going]
    had = {sample for samples, _ in corpora for sample in samples}
    needed = {sample for samples, _ in stays for sample in samples}
    scorers = {scorer for _, scorer in stays}
    scored = {
        (f"scorer-{x}", s) for x in scorers for samples, y in corpora if x == y for s in samples
    }
    # What no chain ever had, a removal says nothing of.
    killed = {("of-a-killed-run", sample) for sample in SAMPLES if sample not in had - needed}

    def rows(table: str, *columns: str) -> set[Any]:
        found = home.warehouse.query(f"select {', '.join(columns)} from {table}").to_pylist()
        return {tuple(row.values()) if len(columns) > 1 else row[columns[0]] for row in found}

    assert rows("samples", "sample_id") == needed
    expected = {row for row in scored if row[1] in needed} | killed
    assert rows("sample_scores", "scorer_id", "sample_id") == expected
    measured = {(f"tokenizer-{x.removeprefix('scorer-')}", s) for x, s in expected - killed}
    assert rows("sample_lengths", "tokenizer_id", "sample_id") == measured
    assert rows("corpus_members", "sample_id") == needed


def test_the_warehouse_refuses_to_remove_what_something_stands_on(home: Home) -> None:
    make_chain(home, "one", ["a", "b"])
    before = recorded(home)
    with pytest.raises(WarehouseError, match=r"got corpus-one, which probe_set-one was"):
        home.warehouse.remove(["corpus-one"])
    assert recorded(home) == before


class KilledError(BaseException):
    """As good as a kill: nothing between here and the top handles it."""


def kill_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > number:
            raise KilledError
        return function(*args, **kwargs)

    return killed


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("resources.warehouse.Warehouse.remove", 0),
        ("resources.artifacts.ArtifactStore.remove", 0),
        ("resources.artifacts.ArtifactStore.remove", 3),
        ("jobs.prune.remove_tracked", 0),
        ("resources.tracking_removal._free_model", 0),
        ("resources.tracking_removal._free_run", 0),
        ("jobs.prune._build_reports", 0),
    ],
)
def test_a_killed_removal_leaves_what_stays_whole_and_the_next_one_finishes_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    make_checkpoint(home, "old", make_chain(home, "old", ["a", "b"]))
    show(home, ["checkpoint"], make_checkpoint(home, "new", make_chain(home, "new", ["b", "c"])))
    kept = chain_of("new") | {"checkpoint-new"}

    with monkeypatch.context() as patch:
        patch.setattr(where, kill_at(number, pkgutil.resolve_name(where)))
        with pytest.raises(KilledError):
            prune(home)
    assert kept <= recorded(home)
    for artifact in home.warehouse.artifacts():
        assert read_lineage(home, artifact.artifact_id).missing == ()
        home.artifacts.verify(artifact.stage, artifact.artifact_id)

    prune(home)
    assert recorded(home) == kept
    assert_whole(home)
    models = home.folder / "mlartifacts" / "models"
    assert [path.name for path in models.iterdir()] == [model_of(home, "checkpoint-new")]
    with closing(sqlite3.connect(home.folder / "mlflow.db")) as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    assert not (home.folder / JOURNAL).exists()


def test_what_was_made_again_after_a_killed_removal_stays(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_chain(home, "old", ["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "remove_tracked", kill_at(0, pruning.remove_tracked))
        with pytest.raises(KilledError):
            prune(home)
    make_artifact(home, "corpus-old")
    prune(home, 1)
    assert recorded(home) == {"corpus-old"}
    assert_whole(home)


def test_nothing_is_removed_while_a_run_is_in_progress(home: Home) -> None:
    make_chain(home, "one", ["a", "b"])
    home.set_environment()

    @dg.job
    def curate() -> None:
        pass

    with dg.DagsterInstance.get() as instance:
        run_id = "11111111-1111-1111-1111-111111111111"
        run = instance.create_run_for_job(
            curate, run_id=run_id, tags=process_tags(run_id), status=dg.DagsterRunStatus.STARTED
        )
        with pytest.raises(HousekeepingError, match=rf"got {run_id} \(curate\); wait for it"):
            prune(home)
        assert recorded(home) == chain_of("one")
        instance.report_run_failed(run)
    with (
        if_free(home.lock_file("reconcile")),
        pytest.raises(HousekeepingError, match="another process is at it"),
    ):
        prune(home)
    prune(home)
    assert recorded(home) == set()


@pytest.mark.long
def test_a_run_that_starts_meanwhile_waits(home: Home) -> None:
    home.set_environment()
    ran = threading.Event()

    @dg.op
    def note(home: Home) -> None:
        ran.set()

    @dg.job(resource_defs={"home": home})
    def noting() -> None:
        note()

    with dg.DagsterInstance.get() as instance:
        at_work = threading.Thread(target=lambda: noting.execute_in_process(instance=instance))
        with home.pruning():
            at_work.start()
            assert not ran.wait(5)
            started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
            assert instance.get_runs(started)  # so that pruning would see it, were it to begin now
        assert ran.wait(60)
        at_work.join()


def test_an_unknown_subset_is_refused(home: Home) -> None:
    make_chain(home, "one", ["a", "b"])
    with pytest.raises(ArtifactError, match=r"--keep-subset must be .*'corpus-one'; .*subset-one"):
        prune(home, keep_subsets=["corpus-one"])
    assert recorded(home) == chain_of("one")


@pytest.mark.long
def test_the_command_tells_what_it_removed_as_json(home: Home) -> None:
    make_chain(home, "old", ["a", "b"])
    make_chain(home, "new", ["b", "c"])
    asked = ("--keep", "0", "--keep-subset", "subset-new")
    done = circuitseer(home.folder, "prune", *asked, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["dry_run"], said["num_removed"]) == (False, 5)
    assert said["removed"]["subset"]["count"] == said["kept"]["subset"]["count"] == 1
    assert recorded(home) == chain_of("new")
