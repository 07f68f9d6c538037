"""The home: the one folder everything made lies in, and the settings in use for it."""

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.records import digest_of
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    SLICES,
    HubModel,
    Settings,
    home_path,
    load_settings,
    parse_settings,
    resolve_path,
    settings_path,
)
from resources.artifacts import ArtifactStore, digest_file
from resources.benchmarks import task_version
from resources.control_texts import PROSE_FILE
from resources.corpora import corpus_files
from resources.dead_runs import end_dead_runs, process_tags
from resources.language_model import identify_model, resolve_dtype
from resources.processes import one_at_a_time
from resources.tracking import Tracking
from resources.tracking_paths import rebase_addresses
from resources.warehouse import Warehouse

MLFLOW_FILES = "mlartifacts"
"""The folder in a home with the files of MLflow's runs and models."""
DAGSTER_VARIABLE = "CIRCUITSEER_DAGSTER_YAML"
"""Names the file that a home's `dagster/dagster.yaml` is a copy of, as long as it is set."""


class Home(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folder with warehouse, artifacts, MLflow store and Dagster home."""

    path: str
    changes: dict[str, Any] = Field(default_factory=dict)
    """Settings slices that replace those of the file, as in one cell of a sweep."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Ends the runs that died, and says which process this run is, should it die too."""
        if context.instance is not None and context.run is not None:
            context.instance.add_run_tags(context.run.run_id, process_tags(context.run.run_id))
            end_dead_runs(context.instance)
            # Dagster calls this run started by now: either pruning sees it, or it waits for that.
            with self.pruning():
                pass

    @property
    def folder(self) -> Path:
        """The home's folder."""
        return Path(self.path)

    @property
    def models(self) -> Path:
        """Where converted models are kept."""
        return self.folder / "models"

    def lock_file(self, name: str) -> Path:
        """Returns the file by which one process at a time is at work on what `name` says."""
        return self.folder / "locks" / f"{name}.lock"

    @contextlib.contextmanager
    def pruning(self) -> Iterator[None]:
        """Returns a context in which nothing is pruned, and whoever prunes is alone."""
        with one_at_a_time(self.lock_file("prune"), f"removing what nothing needs in {self.path}"):
            yield

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifact store."""
        return ArtifactStore(self.folder / "artifacts")

    @property
    def warehouse(self) -> Warehouse:
        """The warehouse."""
        return Warehouse(self.folder / "warehouse.duckdb")

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking URI: the home's own SQLite file unless the settings name a server."""
        named = self.settings().execution.mlflow_tracking_uri
        return named or _sqlite_uri(self.folder / "mlflow.db")

    def tracking(self) -> Tracking:
        """Returns the MLflow store in use; one that moved with its home finds its files again."""
        tracking = Tracking(self.tracking_uri, artifact_root=self.folder / MLFLOW_FILES)
        database = self.folder / "mlflow.db"
        if tracking.uri == _sqlite_uri(database) and database.exists():
            rebase_addresses(database, tracking.experiment, self.folder, root=MLFLOW_FILES)
        return tracking

    def settings(self) -> Settings:
        """Returns the settings in use, read anew: assets never see an older file."""
        path = settings_path(self.folder)
        settings = load_settings(path)
        if not self.changes:
            return settings
        return parse_settings(settings.model_dump(mode="json") | self.changes, origin=path.name)

    def changed(self, **slices: Any) -> "Home":
        """Returns the same home with other settings slices, given as plain JSON values."""
        return Home(path=self.path, changes={**self.changes, **slices})

    def slice_versions(self) -> dict[str, str]:
        """Returns the version of every settings slice: its values and the files it names."""
        return {name: self.slice_version(name) for name in SLICES}

    def slice_version(self, name: str) -> str:
        """Returns the version of one settings slice."""
        return slice_version(self.settings(), name, models=self.models)

    def model_identity(self) -> dict[str, str]:
        """Returns what a ranking or a score depends on besides its own settings."""
        base_model = self.settings().base_model
        return {
            **asdict(identify_model(base_model, cache=self.models)),
            "dtype": resolve_dtype(base_model),
        }

    @classmethod
    def prepared(cls, folder: Path | None = None) -> "Home":
        """Returns the home at `folder` (default: the one in use) with its folders in place.

        Raises:
            SettingsError: `CIRCUITSEER_DAGSTER_YAML` names no file.
        """
        folder = folder or home_path()
        _configure_dagster(folder / "dagster")
        return cls(path=str(folder))

    def set_environment(self) -> None:
        """Makes this process, and those it starts, work in this home."""
        os.environ["CIRCUITSEER_HOME"] = self.path
        os.environ["DAGSTER_HOME"] = str(self.folder / "dagster")
        # Threads that spin while they wait starve each other wherever cores are shared.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Its server would start half a dozen processes for jobs that nothing here asks for.
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")


def _configure_dagster(dagster_home: Path) -> None:
    """Puts Dagster's configuration in place: the named file's, else the project's in a new home."""
    dagster_home.mkdir(parents=True, exist_ok=True)
    named, used = os.environ.get(DAGSTER_VARIABLE), dagster_home / "dagster.yaml"
    if not named and used.exists():
        return  # a copy that was edited stays
    source = resolve_path(named) if named else PROJECT_ROOT / "dagster.yaml"
    if not source.is_file():
        raise SettingsError(
            f"{DAGSTER_VARIABLE} must name a file, got {named}; correct it, as to "
            f"deploy/dagster.yaml, or unset it to keep what the home has"
        )
    if used.exists() and used.read_bytes() == source.read_bytes():
        return
    # Other processes start in this home, and read it, at any time.
    partial = used.with_name(f"{used.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, partial)
    partial.replace(used)


def _sqlite_uri(database: Path) -> str:
    return f"sqlite:///{database}"


def slice_version(settings: Settings, name: str, *, models: Path) -> str:
    """Returns the version of one slice: a digest of its values and of the files it names.

    A model or data set on the hub is pinned to a commit, which is one of the values.

    Raises:
        CircuitSeerError: a file the slice names does not exist.
    """
    files = [[path.name, _digest_once(path)] for path in _files_of(settings, name)]
    return digest_of([name, settings.slice(name), files, _beside_files(settings, name, models)])


def _beside_files(settings: Settings, name: str, models: Path) -> Any:
    """Returns what else a slice stands for: weights, a generator's version, a task's wording."""
    if name == "base_model" and not isinstance(settings.base_model, HubModel):
        return asdict(identify_model(settings.base_model, cache=models))
    if name == "corpus" and settings.corpus.source == "reasoning_gym":
        return importlib.metadata.version("reasoning-gym")
    if name == "decontamination":
        return [task_version(benchmark) for benchmark in settings.decontamination.benchmarks]
    return None


def _files_of(settings: Settings, name: str) -> list[Path]:
    if name == "corpus":
        return corpus_files(settings.corpus)
    if name == "probe_set":
        control = settings.probe_set.control
        if control.source == "prose":
            return [PROSE_FILE]
        return [resolve_path(control.path)] if control.path else []
    if name == "decontamination":
        return [path for b in settings.decontamination.benchmarks for path in b.files()]
    return []


_DIGESTS: dict[tuple[Path, int, int], str] = {}


def _digest_once(path: Path) -> str:
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _DIGESTS:
        _DIGESTS[key] = digest_file(path)
    return _DIGESTS[key]
