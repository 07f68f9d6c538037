"""A stage's run in MLflow ends as its artifact does: recorded with it, or come to nothing."""

from pathlib import Path
from typing import Any

import pytest

from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.errors import WarehouseError
from circuitseer_assets.records import artifact_id_of
from resources.home import Home
from resources.warehouse import Warehouse
from tests.chains import MODEL
from tests.conftest import small_settings, write_settings

IDENTITY = {"settings": "some"}
CHECKPOINT_ID = artifact_id_of("checkpoint", IDENTITY, [], "1")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    write_settings(tmp_path, small_settings())
    return Home.prepared(tmp_path)


def make(run: StageRun) -> Materialised:
    """Returns a checkpoint of which there is but the model."""

    def train(folder: Path) -> Made:
        tracked = run.track(CHECKPOINT_ID, run.mlflow_tags(CHECKPOINT_ID))
        (folder / "model.txt").write_text(tracked.log_checkpoint(MODEL))
        return Made(data=["model.txt"], mlflow_run_id=tracked.run_id)

    return run.reuse_or_make("checkpoint", IDENTITY, [], train, code_version="1")


def at_work(home: Home) -> StageRun:
    return StageRun(home, home.settings(), {}.__getitem__, "a-run")


def statuses(home: Home) -> list[str]:
    """The statuses of all runs, the oldest first."""
    tracking = home.tracking()
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.experiment)
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [run.info.status for run in runs]


def models(home: Home) -> set[str]:
    """The models in MLflow, which are those whose files lie there."""
    tracking = home.tracking()
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.experiment)
    known = {m.model_id for m in client.search_logged_models([experiment.experiment_id])}
    assert {path.name for path in (home.folder / "mlartifacts/models").iterdir()} == known
    return {f"models:/{model_id}" for model_id in known}


def test_what_cannot_be_recorded_leaves_no_model_behind(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        assert statuses(home) == ["RUNNING"]
        raise WarehouseError("the warehouse is locked")

    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "record", refuse)
        with pytest.raises(WarehouseError, match="is locked"):
            make(at_work(home))
    assert statuses(home) == ["FAILED"]
    assert len(models(home)) == 1  # until it is made again
    made = make(at_work(home))
    assert statuses(home) == ["FAILED", "FINISHED"]
    assert models(home) == {(made.folder / "model.txt").read_text()}


def test_the_run_of_whoever_was_killed_as_soon_as_it_had_recorded_is_ended(home: Home) -> None:
    first = make(at_work(home))
    client = home.tracking().client()
    client.update_run(first.artifact.mlflow_run_id, status="RUNNING")
    assert make(StageRun.planned(home, {})).reused
    assert statuses(home) == ["RUNNING"]  # for a plan changes nothing
    assert make(at_work(home)).reused
    assert statuses(home) == ["FINISHED"]
    assert models(home) == {(first.folder / "model.txt").read_text()}
