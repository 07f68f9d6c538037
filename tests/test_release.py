"""From a registered model's URI alone back to the heads, with a real MLflow store and warehouse."""

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from circuitseer_assets.errors import ArtifactError, SettingsError, TrackingError
from circuitseer_assets.method.audit import format_lineage
from circuitseer_assets.method.verification import Check
from circuitseer_assets.records import Artifact
from circuitseer_assets.settings import PROJECT_ROOT
from jobs.lineage import read_lineage
from jobs.release import release_checkpoint
from jobs.verify import CHECKS, verify
from resources.home import Home
from resources.tracking import as_tracking_uri
from tests.conftest import small_settings, write_settings
from tests.test_cli import circuitseer

CHAIN = ("corpus", "probe_set", "head_ranking", "sample_scores", "subset", "checkpoint")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with one chain of artifacts, whose checkpoint is the embedded model, logged."""
    folder = tmp_path_factory.mktemp("home")
    write_settings(folder, small_settings())
    home = Home.prepared(folder)
    tags = {"artifact_id": "checkpoint-1"}
    with home.tracking().run("checkpoint-1", tags) as run:
        uri = run.log_checkpoint(PROJECT_ROOT / "models/tiny", tags=tags)
    rows = {"head_ranking": heads(), "subset": members(), "checkpoint": trained(uri)}
    for i, stage in enumerate(CHAIN):
        home.warehouse.record(
            Artifact(
                artifact_id=f"{stage}-1",
                stage=stage,
                data_version=f"v-{stage}",
                parents=(f"{CHAIN[i - 1]}-1",) if i else (),
                settings={stage: {"seed": 3}},
                code_version="1",
                dagster_run_id=f"run-of-{stage}",
                mlflow_run_id=run.run_id if stage == "checkpoint" else None,
            ),
            rows.get(stage, {}),
        )
    return home


def heads() -> dict[str, pa.Table]:
    figures = {"delta_loss_nats": 0.1, "stderr": 0.0, "ci_low": 0.1, "ci_high": 0.1}
    rows = [
        {"head_ranking_id": "head_ranking-1", "layer": layer, "head": head, **figures}
        | {"num_probes": 4, "measured_on_all": True, "is_reasoning_head": head < 2}
        for layer, head in ((0, 1), (10, 0), (2, 1), (2, 3))
    ]
    return {"head_importance": pa.Table.from_pylist(rows)}


def members() -> dict[str, pa.Table]:
    figures = {"score": 1.0, "weight": 1.0, "sampling_key": 0.5, "inclusion_probability": 0.5}
    rows = [{"subset_id": "subset-1", "sample_id": one, **figures} for one in "abc"]
    return {"subset_members": pa.Table.from_pylist(rows)}


def trained(uri: str) -> dict[str, pa.Table]:
    row = {"checkpoint_id": "checkpoint-1", "subset_id": "subset-1", "mlflow_model_uri": uri}
    figures = {"num_steps": 1, "first_loss_nats": 1.0, "final_loss_nats": 1.0}
    row |= {**figures, "num_train_tokens": 9, "duration_s": 0.1}
    return {"checkpoints": pa.Table.from_pylist([row])}


def test_a_released_models_uri_leads_to_the_heads_in_one_command(home: Home) -> None:
    uri = release_checkpoint(home, "checkpoint-1", "solver")
    assert uri == "models:/solver/1"
    done = circuitseer(home.folder, "lineage", uri)
    assert done.returncode == 0, done.stderr
    assert "reasoning heads 0.1 2.1 10.0" in done.stdout
    assert "samples 3" in done.stdout
    for stage in CHAIN:
        assert f"{stage}-1" in done.stdout

    said = json.loads(circuitseer(home.folder, "lineage", uri, "--json").stdout)
    [ranking] = [one for one in said["artifacts"] if one["stage"] == "head_ranking"]
    assert ranking["facts"] == {"reasoning_heads": ["0.1", "2.1", "10.0"]}
    assert ranking["settings"] == {"head_ranking": {"seed": 3}}


def test_every_uri_of_the_model_leads_to_the_checkpoint(home: Home) -> None:
    release_checkpoint(home, "checkpoint-1", "solver")
    client = home.tracking().client()
    client.set_registered_model_alias("solver", "best", "1")
    logged = read_lineage(home, "checkpoint-1").facts["checkpoint-1"]["model"]
    newest = ("models:/solver", "models:/solver/latest")
    for uri in ("models:/solver/1", "models:/solver@best", logged, *newest):
        assert read_lineage(home, uri).artifact_id == "checkpoint-1"


def test_a_release_is_a_version_that_tells_its_lineage_and_is_made_once(home: Home) -> None:
    first = release_checkpoint(home, "checkpoint-1", "teller")
    assert release_checkpoint(home, "checkpoint-1", "teller") == first == "models:/teller/1"
    version = home.tracking().client().get_model_version("teller", "1")
    assert "heads 0.1 2.1 10.0" in version.description
    for stage in CHAIN:
        assert f"{stage}-1: content v-{stage}, Dagster run run-of-{stage}" in version.description
    [command] = [line for line in version.description.splitlines() if "circuitseer " in line]
    uri = command.split()[-1]
    assert command.endswith(f"circuitseer lineage {uri}")
    assert read_lineage(home, uri).artifact_id == "checkpoint-1"
    assert (
        version.description == home.tracking().client().get_registered_model("teller").description
    )
    assert version.tags == {
        "artifact_id": "checkpoint-1",
        "subset_id": "subset-1",
        "dagster_run_id": "run-of-checkpoint",
    }


def test_a_release_that_fails_leaves_no_empty_model(home: Home) -> None:
    refuse = "create trigger full before insert on model_versions begin select raise(fail, ''); end"
    with contextlib.closing(sqlite3.connect(home.folder / "mlflow.db")) as store, store:
        store.execute(refuse)
    try:
        with pytest.raises(TrackingError, match="register models:/m-"):
            release_checkpoint(home, "checkpoint-1", "halfway")
    finally:
        with contextlib.closing(sqlite3.connect(home.folder / "mlflow.db")) as store, store:
            store.execute("drop trigger full")
    assert not home.tracking().client().search_registered_models("name = 'halfway'")
    assert release_checkpoint(home, "checkpoint-1", "halfway") == "models:/halfway/1"


def test_a_model_registered_by_hand_leads_to_the_heads(home: Home) -> None:
    tracking, checkpoint = home.tracking(), home.warehouse.find_artifact("checkpoint-1")
    assert checkpoint is not None
    logged = read_lineage(home, "checkpoint-1").facts["checkpoint-1"]["model"]
    client = tracking.client()
    with as_tracking_uri(tracking.uri):
        client.create_registered_model("byhand")
        client.create_model_version("byhand", logged)
        client.create_model_version("byhand", "elsewhere", run_id=checkpoint.mlflow_run_id)
    assert [client.get_model_version("byhand", one).tags for one in ("1", "2")] == [{}, {}]
    done = circuitseer(home.folder, "lineage", "models:/byhand/1")
    assert done.returncode == 0, done.stderr
    assert "heads 0.1 2.1 10.0" in done.stdout
    assert read_lineage(home, "models:/byhand").artifact_id == "checkpoint-1"  # by its run


def test_a_version_that_is_pointed_elsewhere_does_not_verify(home: Home) -> None:
    uri = release_checkpoint(home, "checkpoint-1", "moved")
    everything_else = [check for check in CHECKS if check != "release"]

    def release_check() -> Check:
        return verify(home, uri, skip=everything_else).checks[0]

    assert release_check().outcome == "ok"
    logged = read_lineage(home, "checkpoint-1").facts["checkpoint-1"]["model"]
    elsewhere = (home.folder / "elsewhere").as_uri()
    for column, value in (("storage_location", elsewhere), ("source", "models:/m-" + "0" * 32)):
        with contextlib.closing(sqlite3.connect(home.folder / "mlflow.db")) as store, store:
            store.execute(f"update model_versions set {column} = ? where name = 'moved'", [value])
        check = release_check()
        assert check.outcome == "differs"
        assert "the version was pointed elsewhere" in check.findings[0]
    assert f"must be the model {logged} of checkpoint-1" in check.findings[0]


def test_what_lies_downstream_is_told_as_well(home: Home) -> None:
    lineage = read_lineage(home, "head_ranking-1")
    assert [artifact.artifact_id for artifact in lineage.artifacts] == [
        "head_ranking-1",
        "probe_set-1",
        "corpus-1",
    ]
    below = [artifact.artifact_id for artifact in lineage.descendants]
    assert below == ["sample_scores-1", "subset-1", "checkpoint-1"]
    assert "  subset-1 (samples 3)" in format_lineage(lineage)


def test_what_cannot_be_released_or_found_is_named(home: Home) -> None:
    with pytest.raises(ArtifactError, match=r"must be a checkpoint, got subset-1 of stage subset"):
        release_checkpoint(home, "subset-1", "solver")
    with pytest.raises(SettingsError, match=r"the registered model's name must be letters"):
        release_checkpoint(home, "checkpoint-1", "a/b")
    with pytest.raises(TrackingError, match=r"look up models:/nobody/1"):
        read_lineage(home, "models:/nobody/1")
    with pytest.raises(ArtifactError, match=r"a model's URI must be models:/NAME/VERSION"):
        read_lineage(home, "models:/a/b/c")


def test_a_model_from_elsewhere_is_not_taken_for_a_checkpoint(home: Home) -> None:
    client = home.tracking().client()
    client.create_registered_model("stranger")
    client.create_model_version("stranger", str(Path(home.folder) / "mlartifacts"))
    with pytest.raises(ArtifactError, match=r"by a tag artifact_id, .* and none has it"):
        read_lineage(home, "models:/stranger/1")


def test_nothing_is_released_whose_lineage_has_a_gap(home: Home) -> None:
    checkpoint = home.warehouse.find_artifact("checkpoint-1")
    assert checkpoint is not None
    home.warehouse.record(
        replace(checkpoint, artifact_id="checkpoint-2", parents=("subset-1", "subset-lost")),
        {},
    )
    with pytest.raises(ArtifactError, match=r"subset-lost is not; restore the warehouse"):
        release_checkpoint(home, "checkpoint-2", "gap")
    assert not home.tracking().client().search_registered_models("name = 'gap'")
