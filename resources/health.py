"""What can be wrong with a home and what it stands on, and what of it can be mended safely.

Each check looks at one thing and yields what is not as it should be; it changes nothing itself.
"""

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg
from packaging.requirements import Requirement

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.settings import HubCorpus, HubModel
from resources.artifacts import leftovers_of
from resources.corpora import corpus_files
from resources.dagster_instance import RedactingInstance
from resources.dead_runs import end_dead_runs, find_dead_runs, find_held_slots
from resources.home import Home
from resources.model_files import find_gguf_file, find_model_folder
from resources.processes import if_free
from resources.removal_journal import JOURNAL
from resources.warehouse_lock import open_waiting
from resources.warehouse_schema import list_migrations, schema_version

Severity = Literal["warning", "error"]
MIN_FREE_BYTES = 2 * 10**9
_WAIT_S = 5.0
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        severity: an error keeps the graph from running, a warning does not.
        said: what it is and what mends it, in a sentence.
        repair: mends it; None where a person has to decide.
    """

    severity: Severity
    said: str
    repair: Callable[[], object] | None = None


def check_home(home: Home) -> Iterator[Finding]:
    """Yields what keeps files from being written to the home, or from staying whole there."""
    try:
        with tempfile.TemporaryFile(dir=home.folder) as file:
            file.write(b"0" * 2**16)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(
            "error",
            f"the home {home.folder} must be writable, and is not ({error.strerror}); correct its "
            f"owner or its file system, or name another with CIRCUITSEER_HOME",
        )
    free = shutil.disk_usage(home.folder).free
    if free < MIN_FREE_BYTES:
        yield Finding(
            "warning",
            f"the disk of {home.folder} should have at least {MIN_FREE_BYTES / 1e9:.0f} GB free, "
            f"got {free / 1e9:.2f} GB; run `circuitseer prune`, or free some",
        )
    kind = file_system_of(home.folder)
    if kind in _NETWORK_FILE_SYSTEMS:
        yield Finding(
            "error",
            f"the home must lie on a local disk, got {kind} at {home.folder}: DuckDB's locks do "
            f"not hold over a network; name a local folder with CIRCUITSEER_HOME",
        )


def file_system_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Returns the kind of file system a folder lies on; empty where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    points = [(Path(place), kind) for _, place, kind, *_ in (line.split() for line in lines)]
    above = [point for point in points if folder.resolve().is_relative_to(point[0])]
    return max(above, key=lambda point: len(point[0].parts), default=(folder, ""))[1]


def check_versions(home: Home) -> Iterator[Finding]:
    """Yields the installed packages that are not what CircuitSeer asks for."""
    yield from find_misfits(remedy="run `make setup`")
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        yield Finding(
            "error",
            f"Python must be 3.11 or 3.12, got {sys.version.split()[0]}; make .venv anew with one "
            f"of these",
        )


def find_misfits(extra: str = "", *, remedy: str) -> Iterator[Finding]:
    """Yields the packages that CircuitSeer, or one extra of it, asks for and are not installed."""
    for line in importlib.metadata.requires("circuitseer") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        is_meant = marker is None or marker.evaluate({"extra": extra})
        if not is_meant or (extra and (marker is None or marker.evaluate({"extra": ""}))):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("error", f"{requirement.name} must be installed; {remedy}")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield Finding(
                "error",
                f"{requirement.name} must be {requirement.specifier}, got {installed}; {remedy}",
            )


def check_settings(home: Home) -> Iterator[Finding]:
    """Yields what the settings name and is not there."""
    settings = home.settings()
    looks: list[Callable[[], object]] = [lambda: corpus_files(settings.corpus)]
    model = settings.base_model
    if model.source == "gguf":
        looks.append(lambda: find_gguf_file(model))
    elif not isinstance(model, HubModel):
        looks.append(lambda: find_model_folder(model))
    for look in looks:
        try:
            look()
        except CircuitSeerError as error:
            yield Finding("error", str(error))
    for benchmark in settings.decontamination.benchmarks:
        for path in benchmark.files():
            if not path.is_file():
                yield Finding(
                    "error",
                    f"the benchmark {benchmark.task} must name files that exist, got {path}; "
                    f"correct decontamination.benchmarks",
                )
    if isinstance(model, HubModel) or isinstance(settings.corpus, HubCorpus):
        yield from _ask_hub()


def _ask_hub() -> Iterator[Finding]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return
    try:
        next(iter(HfApi().list_models(limit=1)))
    except (OSError, HfHubHTTPError, StopIteration) as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding(
            "warning",
            f"the Hugging Face hub, which the settings name, should answer, and does not "
            f"({type(error).__name__}: {reason}); what is in its cache can be used with "
            f"HF_HUB_OFFLINE=1",
        )


def check_device(home: Home) -> Iterator[Finding]:
    """Yields why the base model could not run where the settings say."""
    from resources.language_model import resolve_dtype

    model = home.settings().base_model
    try:
        resolve_dtype(model.model_copy(update={"dtype": "auto"}))
    except CircuitSeerError as error:
        yield Finding("error", str(error))


def check_warehouse(home: Home) -> Iterator[Finding]:
    """Yields why the warehouse cannot be used as it is, and which rows lead nowhere."""
    warehouse = home.warehouse
    if not warehouse.path.exists():
        return
    try:
        connection = open_waiting(warehouse.path, read_only=True, limit_s=_WAIT_S)
    except CircuitSeerError as error:
        yield Finding("error", str(error))
        return
    with connection:
        version = schema_version(connection)
    latest = len(list_migrations(warehouse.migrations))
    if version > latest:
        yield Finding(
            "error",
            f"the warehouse's schema version must be at most {latest} (this code's), got "
            f"{version}; use the newer CircuitSeer that wrote it, or another CIRCUITSEER_HOME",
        )
    elif version < latest:
        yield Finding(
            "warning",
            f"the warehouse's schema version is {version}, this code's {latest}; the next command "
            f"brings it up to date",
            warehouse.migrate,
        )
    else:
        sql = """
            select artifact_id, parent from (
                select artifact_id, unnest(parents) as parent from artifacts
            ) where parent not in (select artifact_id from artifacts)
        """
        for row in warehouse.query(sql).to_pylist():
            yield Finding(
                "warning",
                f"{row['artifact_id']} should have all its parents in the warehouse, "
                f"{row['parent']} is not there; make it anew, or restore a backup",
            )


def check_store(home: Home, *, is_deep: bool = False) -> Iterator[Finding]:
    """Yields artifacts whose files are not whole, and files that no artifact has.

    Args:
        home: whose store it is.
        is_deep: read every file and compare its digest; otherwise its size alone.
    """
    recorded = {a.artifact_id: a for a in home.warehouse.artifacts()}
    for artifact in recorded.values():
        stage, artifact_id = artifact.stage, artifact.artifact_id
        check = home.artifacts.is_whole if is_deep else home.artifacts.is_present
        if not check(stage, artifact_id):
            yield Finding(
                "warning",
                f"the files of {artifact_id} should be whole, and are not: it counts as missing; "
                f"`circuitseer run` makes it anew where it is needed, a backup has it as it was",
            )
    for folder in sorted(home.artifacts.root.glob("*/*")):
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in recorded:
            yield _ownerless(home, folder)
    for folder in leftovers_of(home.artifacts.root):
        yield Finding(
            "warning",
            f"{folder} was left by a process that died; it counts as nothing",
            _remover(folder),
        )
    for folder in sorted((home.folder / "work").glob("*")):
        if folder.name in recorded:
            yield Finding(
                "warning",
                f"{folder} is work on an artifact that is finished; nothing reads it",
                _remover(folder),
            )


def _ownerless(home: Home, folder: Path) -> Finding:
    def remove() -> None:
        # Whoever makes it just now has the lock, and records it in a moment.
        with if_free(home.lock_file(folder.name)) as is_free:
            if is_free and home.warehouse.find_artifact(folder.name) is None:
                home.artifacts.remove(folder.parent.name, folder.name)

    return Finding(
        "warning",
        f"{folder} has no row in the warehouse: its run died before it was recorded; it counts as "
        f"nothing, and is made anew",
        remove,
    )


def _remover(folder: Path) -> Callable[[], object]:
    return lambda: shutil.rmtree(folder)


def check_runs(home: Home) -> Iterator[Finding]:
    """Yields runs whose process died, pool slots that nobody uses, and secrets let through."""
    home.set_environment()
    with dg.DagsterInstance.get() as instance:
        if not isinstance(instance, RedactingInstance):
            yield Finding(
                "warning",
                f"Dagster should store no secret of the environment with a run that fails, and "
                f"{home.folder}/dagster/dagster.yaml does not say so; copy `instance_class` into "
                f"it from the project's dagster.yaml",
            )
        dead = find_dead_runs(instance)
        slots = find_held_slots(instance, dead)

    def end() -> None:
        with dg.DagsterInstance.get() as repaired:
            end_dead_runs(repaired)

    for run in dead:
        yield Finding(
            "warning",
            f"the run {run.run_id} shows as at work, but its process died; the next run ends it",
            end,
        )
    for run_id in slots:
        yield Finding(
            "warning",
            f"the run {run_id} is over and holds a slot of a pool; the next run frees it",
            end,
        )


def check_tracking(home: Home) -> Iterator[Finding]:
    """Yields why MLflow cannot be used, and the checkpoints whose weights it lost."""
    tracking = home.tracking()
    if tracking.is_file and not Path(tracking.uri.removeprefix("sqlite:///")).exists():
        return  # nothing was tracked yet
    try:
        with tracking.reaching("list its experiments"):
            tracking.client().search_experiments(max_results=1)
    except CircuitSeerError as error:
        yield Finding("error", str(error))
        return
    for checkpoint_id, model_id in home.warehouse.models_of_checkpoints().items():
        if not tracking.has_model(f"models:/{model_id}"):
            yield Finding(
                "warning",
                f"the weights of {checkpoint_id} should be in MLflow, and are not; it is trained "
                f"anew where it is needed, a backup has them",
            )


def check_removal(home: Home) -> Iterator[Finding]:
    """Yields a removal that was begun and not finished."""
    journal = home.folder / JOURNAL
    if journal.exists():
        yield Finding(
            "warning",
            f"a removal was killed half-way ({journal}); the next `circuitseer prune` finishes it",
        )
