"""Removing runs and models from MLflow, and freeing the space of their files.

MLflow's own deletion is a mark that can be undone. In the home's SQLite store the files are removed
as well, and then the rows, as `mlflow gc` does. That command is not called: besides the runs it is
given, it removes every experiment and model that a user has put aside as deleted. A server is asked
for the mark alone: its files are freed by `mlflow gc` there.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from resources.tracking import Tracking, unless_gone


def find_models_of(tracking: Tracking, run_ids: Collection[str]) -> set[str]:
    """Returns the ids of the models that these runs logged; a run that is gone has none.

    Raises:
        TrackingError: the store cannot be reached.
    """
    found = set()
    with tracking.reaching("look up the models of runs"):
        client = tracking.client()
        for run_id in run_ids:
            run = unless_gone(client.get_run, run_id)
            if run is not None and run.outputs is not None:
                found |= {str(output.model_id) for output in run.outputs.model_outputs}
    return found


def measure_bytes(tracking: Tracking, model_id: str) -> int:
    """Returns the size of a model's files; 0 where a server holds them."""
    if tracking.artifact_root is None or not tracking.is_file:
        return 0
    files = (tracking.artifact_root / "models" / model_id).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def remove_tracked(
    tracking: Tracking, run_ids: Collection[str], model_ids: Collection[str]
) -> None:
    """Returns when these runs and models are gone; those that are gone already are passed over.

    Raises:
        TrackingError: the store cannot be reached.
    """
    with tracking.reaching("delete runs and models"):
        client = tracking.client()
        store = _sql_store(tracking)
        for model_id in sorted(model_ids):
            unless_gone(client.delete_logged_model, model_id)
            if store is not None:
                _free_model(store, tracking, model_id)
        for run_id in sorted(run_ids):
            unless_gone(client.delete_run, run_id)
            if store is not None:
                _free_run(store, tracking, run_id)


def _sql_store(tracking: Tracking) -> Any:
    if tracking.artifact_root is None or not tracking.is_file:
        return None
    from mlflow.store.tracking import sqlalchemy_store

    store: Any = sqlalchemy_store.SqlAlchemyStore  # untyped, as all of MLflow's stores
    return store(tracking.uri, tracking.artifact_root.resolve().as_uri())


# The files first: while the row is there, a removal that was killed can be done again.
def _free_model(store: Any, tracking: Tracking, model_id: str) -> None:
    model = unless_gone(store.get_logged_model, model_id, allow_deleted=True)
    if model is not None:
        _remove_folder(tracking, model.artifact_location, model_id)
        store._hard_delete_logged_model(model_id)


def _free_run(store: Any, tracking: Tracking, run_id: str) -> None:
    run = unless_gone(store.get_run, run_id)
    if run is not None:
        _remove_folder(tracking, run.info.artifact_uri, run_id)
        store._hard_delete_run(run_id)


def _remove_folder(tracking: Tracking, uri: str, name: str) -> None:
    """Returns when the folder that MLflow made for `name` is gone; any other is left alone."""
    assert tracking.artifact_root is not None
    folder = Path(url2pathname(urlsplit(uri).path)).parent
    is_ours = folder.name == name and folder.is_relative_to(tracking.artifact_root.resolve())
    if is_ours and folder.exists():
        shutil.rmtree(folder)
