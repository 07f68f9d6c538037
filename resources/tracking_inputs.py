"""What a run in MLflow was given: data sets with their digests, and the model that was asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resources.tracking import TrackedRun

_MAX_DIGEST_LENGTH = 36


def log_training_set(run: "TrackedRun", path: Path, *, subset_id: str, data_version: str) -> None:
    """Returns when the subset, whose members are the Parquet file at `path`, is the run's input.

    MLflow's digest of the data set is the subset's data version, its name the subset's id.

    Raises:
        TrackingError: the store cannot be reached.
    """
    import pyarrow.parquet as pq

    _log_dataset(
        run,
        subset_id,
        data_version,
        context="training",
        source={"uri": path.resolve().as_uri()},
        num_rows=pq.read_metadata(path).num_rows,
    )


def log_benchmarks(
    run: "TrackedRun", digests: Mapping[str, str], num_problems: Mapping[str, int]
) -> None:
    """Returns when the tasks asked, each with the digest of its problems' source, are inputs.

    Raises:
        TrackingError: the store cannot be reached.
    """
    for task, digest in digests.items():
        _log_dataset(
            run,
            task,
            digest,
            context="evaluation",
            source={"task": task},
            num_rows=num_problems[task],
        )


def log_model_input(run: "TrackedRun", model_uri: str) -> None:
    """Returns when the logged model at `models:/m-...` is the run's input: the one it asked.

    Raises:
        TrackingError: the store cannot be reached.
    """
    from mlflow.entities import LoggedModelInput

    given = LoggedModelInput(model_id=model_uri.removeprefix("models:/"))
    with run.tracking.reaching("name the model of a run"):
        run.tracking.client().log_inputs(run.run_id, models=[given])


def _log_dataset(
    run: "TrackedRun",
    name: str,
    digest: str,
    *,
    context: str,
    source: Mapping[str, str],
    num_rows: int,
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=digest[:_MAX_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps(source),
        profile=json.dumps({"num_rows": num_rows}),
    )
    tag = InputTag(key="mlflow.data.context", value=context)
    with run.tracking.reaching(f"log the {context} set"):
        given = [DatasetInput(dataset, tags=[tag])]
        run.tracking.client().log_inputs(run.run_id, datasets=given)
