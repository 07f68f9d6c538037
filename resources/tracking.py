"""MLflow: where training runs, their metrics and their checkpoints are kept and looked at.

Everything is addressed explicitly, by tracking URI, experiment id and run id: MLflow's defaults
change with the working directory and with what ran before in the same process. MLflow is imported
on first use, since importing it takes seconds.
"""

import importlib.metadata
import logging
import math
import os
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitseer_assets.errors import ArtifactError, TrackingError
from circuitseer_assets.redaction import redact, redacted
from resources.tracking_note import note_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

UI_BASE_VARIABLE = "CIRCUITSEER_MLFLOW_UI"
"""Where links to MLflow's pages lead, if not to the server that keeps the runs: people may reach it
by another address than the runs do."""
_UI_BASE = "http://127.0.0.1:5000"

# Set before MLflow is imported, and only where the user has not: tell nobody, and do not try for
# minutes to reach a server that is down.
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
_MAX_PARAMS = 100
_MAX_PARAM_LENGTH = 6000
_MODEL_REQUIREMENTS = ("torch", "transformers", "accelerate")


class Tracking:
    """One MLflow store and the experiment in it that CircuitSeer's runs belong to.

    `uri` is `sqlite:///...` or the address of a server. `artifact_root` is where a SQLite store
    keeps files, for a server keeps its own; it is fixed when the experiment is first made.
    """

    def __init__(
        self, uri: str, experiment: str = "circuitseer", *, artifact_root: Path | None = None
    ) -> None:
        self.uri = uri
        self.experiment = experiment
        self.artifact_root = artifact_root

    @contextmanager
    def run(
        self, name: str, tags: Mapping[str, str | None] | None = None
    ) -> Iterator["TrackedRun"]:
        """Yields a new run, which ends as FINISHED, or as FAILED when an exception passes through.

        Tags without a value are left out; `dagster_run_id`, `dagster_asset` and `artifact_id` are
        the ones that lead from MLflow back to the asset graph: the run's description links there.

        Raises:
            TrackingError: the store cannot be reached.
        """
        tags = tags or {}
        kept = redacted({**tags, "mlflow.note.content": note_of(tags)})
        with self.reaching("start a run"):
            client = self.client()
            experiment_id = self._experiment_id(client)
            run_id = client.create_run(experiment_id, run_name=name, tags=kept).info.run_id
        tracked = TrackedRun(self, run_id, experiment_id)
        status = "FAILED"
        try:
            yield tracked
            status = "FINISHED"
        finally:
            with self.reaching("end a run"):
                client.set_terminated(run_id, status=status)

    def run_url(self, run_id: str) -> str:
        """Returns the address of a run's page; a server's own pages where the URI is one.

        Raises:
            TrackingError: there is no such run, or the store cannot be reached.
        """
        with self.reaching(f"look up run {run_id}"):
            experiment_id = self.client().get_run(run_id).info.experiment_id
        return self._page(experiment_id, run_id)

    def file_url(self, run_id: str, path: str) -> str:
        """Returns the address of the page that shows a file among a run's artifacts.

        Raises:
            TrackingError: there is no such run, or the store cannot be reached.
        """
        return f"{self.run_url(run_id)}/artifacts/{path}"

    def log_file(self, run_id: str, path: Path, folder: str) -> None:
        """Copies a file to a run's artifacts, into `folder` there; the run may have ended.

        Raises:
            TrackingError: there is no such run, or the store cannot be reached.
        """
        with self.reaching(f"keep {path.name} with run {run_id}"), as_tracking_uri(self.uri):
            self.client().log_artifact(run_id, str(path), folder)

    @property
    def is_file(self) -> bool:
        """Whether the store is a SQLite file, whose runs' files lie in a folder of this machine."""
        return self.uri.startswith("sqlite:")

    def has_model(self, model_uri: str) -> bool:
        """Returns whether the store's own folder holds the checkpoint's weights.

        A server is not asked: it would have to send them all.
        """
        if self.artifact_root is None or not self.is_file:
            return True
        model_id = model_uri.removeprefix("models:/")
        return any(self.artifact_root.glob(f"**/{model_id}/artifacts/model/*.safetensors"))

    def model_folder(self, model_uri: str) -> Path:
        """Returns the Hugging Face folder of a logged checkpoint: config, weights and tokenizer.

        With files on this machine that is the store's own folder, not a copy: do not write to it.

        Raises:
            ArtifactError: the URI leads to no model, or its files are gone.
            TrackingError: the store cannot be reached.
        """
        with self.reaching(f"fetch {model_uri}"), as_tracking_uri(self.uri):
            import mlflow.artifacts
            from mlflow.exceptions import MlflowException

            try:
                folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri)) / "model"
            except (MlflowException, OSError) as error:
                raise ArtifactError(
                    f"the checkpoint {model_uri} must be in the MLflow store {self.uri}, and is "
                    f"not ({_first_line(error)}); run make run to train it again"
                ) from error
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise ArtifactError(
                f"the checkpoint {model_uri} must hold a config and safetensors, and {folder} does "
                f"not; run make run to train it again"
            )
        return folder

    def client(self) -> "MlflowClient":
        """Returns MLflow's client of the store; to be used within `reaching`."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def _experiment_id(self, client: "MlflowClient") -> str:
        existing = client.get_experiment_by_name(self.experiment)
        if existing is not None:
            return str(existing.experiment_id)
        root = self.artifact_root if self.is_file else None
        location = root.resolve().as_uri() if root is not None else None
        return str(client.create_experiment(self.experiment, artifact_location=location))

    def _page(self, experiment_id: str, run_id: str) -> str:
        is_server = self.uri.startswith(("http://", "https://"))
        base = os.environ.get(UI_BASE_VARIABLE) or (self.uri if is_server else _UI_BASE)
        return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"

    @contextmanager
    def reaching(self, purpose: str) -> Iterator[None]:
        """Turns what MLflow refuses into one sentence that names the store and the purpose.

        Raises:
            TrackingError: MLflow refused, or cannot be reached.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise TrackingError(
                f"MLflow at {self.uri} must answer to {purpose}, and did not: "
                f"{_first_line(error)}; check execution.mlflow_tracking_uri"
            ) from error


@dataclass(frozen=True)
class TrackedRun:
    """One run: what it was given, how it goes, and what came out."""

    tracking: Tracking
    run_id: str
    experiment_id: str

    @property
    def url(self) -> str:
        """The address of the run's page."""
        return self.tracking._page(self.experiment_id, self.run_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Records settings, without secrets; nested ones get dotted names."""
        from mlflow.entities import Param

        flat = [Param(key, value[:_MAX_PARAM_LENGTH]) for key, value in _flatten(params)]
        with self.tracking.reaching("log parameters"):
            client = self.tracking.client()
            for begin in range(0, len(flat), _MAX_PARAMS):
                client.log_batch(self.run_id, params=flat[begin : begin + _MAX_PARAMS])

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one step's metrics, at once; what is no finite number is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now, step)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        with self.tracking.reaching("log metrics"):
            self.tracking.client().log_batch(self.run_id, metrics=batch)

    def log_checkpoint(self, folder: Path, *, tags: Mapping[str, str | None] | None = None) -> str:
        """Returns the URI of the MLflow model that the checkpoint in `folder` is logged as.

        The files are copied, not loaded; `folder` is not needed afterwards. Any process loads the
        model with `mlflow.transformers.load_model(uri)`, given the same tracking URI.

        Raises:
            TrackingError: the store cannot be reached, or refuses the model.
        """
        kept = redacted(tags or {})
        with (
            self.tracking.reaching("log a checkpoint"),
            as_tracking_uri(self.tracking.uri),
            _quiet("mlflow.transformers"),
            _pipeline_classes(),
        ):
            import mlflow.transformers

            # Made here, with its experiment: MLflow would put it into its default one.
            model = self.tracking.client().create_logged_model(
                self.experiment_id, name="checkpoint", source_run_id=self.run_id, tags=kept
            )
            info = mlflow.transformers.log_model(
                # An absolute path: MLflow asks the hub for the licence of a relative one.
                transformers_model=str(folder.resolve()),
                name="checkpoint",
                task="text-generation",
                model_card=_model_card(),
                pip_requirements=_pip_requirements(),
                run_id=self.run_id,
                model_id=model.model_id,
            )
        return str(info.model_uri)


def unless_gone(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what MLflow answers to a call, None where it says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*args, **kwargs)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


@contextmanager
def as_tracking_uri(uri: str) -> Iterator[None]:
    """Sets MLflow's global tracking URI for as long as a function needs it that takes no URI."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def _pipeline_classes() -> Iterator[None]:
    """Lets MLflow find a pipeline's class, which transformers 5.2x names where it once held it."""
    from transformers import pipelines

    original = pipelines.check_task

    def check_task(task: str) -> Any:
        name, defaults, options = original(task)
        if isinstance(defaults["impl"], str):
            defaults = {**defaults, "impl": pkgutil.resolve_name(defaults["impl"])}
        return name, defaults, options

    pipelines.check_task = check_task
    try:
        yield
    finally:
        pipelines.check_task = original


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _model_card() -> Any:
    # Given, so that MLflow does not ask the hub for one.
    from huggingface_hub import ModelCard

    return ModelCard(
        "---\ntags: [circuitseer]\n---\nFine-tuned on a subset drawn by CircuitSeer.\n"
    )


def _pip_requirements() -> list[str]:
    # Given, so that MLflow does not find them out by importing everything in a new process.
    return [f"{name}=={importlib.metadata.version(name)}" for name in _MODEL_REQUIREMENTS]


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", redact(str(value))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
