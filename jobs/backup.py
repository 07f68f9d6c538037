"""Copying a home while runs go on, so that the copy is a home that can be worked in.

The order makes the copy whole. Something is written as files, then in MLflow, then in the
warehouse, then shown in Dagster; it is copied the other way round. So whatever the copy of Dagster
names is in the copy of the warehouse, and whatever that names is in MLflow and among the files.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from circuitseer_assets.assets.checkpoint import is_as_logged
from circuitseer_assets.errors import HousekeepingError
from circuitseer_assets.records import Artifact
from resources.artifacts import ArtifactStore
from resources.home import MLFLOW_FILES, Home
from resources.processes import one_at_a_time
from resources.removal_journal import JOURNAL
from resources.snapshots import copy_file, copy_files, list_files, measure_files
from resources.tracking_paths import rebase_addresses
from resources.warehouse import Warehouse

MARK = "backup.json"
_WAREHOUSE, _MLFLOW = "warehouse.duckdb", "mlflow.db"
_SEPARATELY = ("dagster", _WAREHOUSE, f"{_WAREHOUSE}.wal", _MLFLOW, "artifacts", MLFLOW_FILES)
_LEFT_OUT = ("work", "locks", "dbt", "last_run.log", JOURNAL)
"""Unfinished work, and what every run writes anew."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds, or would hold.

    Attributes:
        folder: where it lies.
        num_artifacts: those the warehouse names.
        num_bytes: the size of all its files.
        incomplete: artifacts whose files, or weights, were not whole in the home either.
        not_included: stores of the home that lie elsewhere, each with what backs it up.
    """

    dry_run: bool
    folder: str
    num_artifacts: int
    num_bytes: int
    duration_s: float
    incomplete: tuple[str, ...]
    not_included: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Returns all of it as plain JSON values."""
        return asdict(self)


def back_up(
    home: Home, folder: Path | None = None, *, hard_links: bool = False, dry_run: bool = False
) -> Backup:
    """Returns what was copied to `folder`; with `dry_run` what would be, and nothing is.

    The copy is made in `folder` with the suffix `.partial`, which a killed backup leaves and the
    next one to that folder replaces.

    Args:
        home: the home; runs may go on in it.
        folder: a folder that is not there yet; by default one beside the home, named after it and
            the time.
        hard_links: artifacts and weights, which never change, are not copied but given a second
            name: fast and small, and no help when the disk is lost.
        dry_run: only say what would be copied.

    Raises:
        HousekeepingError: the folder is there already, lies within the home, or has too little
            room; or an artifact was made again meanwhile.
        OSError: a file cannot be read or written.
    """
    started = time.monotonic()
    folder = _destination(home, folder)
    artifacts = home.warehouse.artifacts()
    num_bytes = measure_files(list_files(home.folder, leave_out=_LEFT_OUT))
    if dry_run:
        elsewhere = _stores_elsewhere(home)
        return Backup(True, str(folder), len(artifacts), num_bytes, 0.0, (), elsewhere)
    with one_at_a_time(home.lock_file("housekeeping"), f"a backup or removal in {home.folder}"):
        partial = _begin(home, folder, 0 if hard_links else num_bytes)
        copied = _copy_all(home, partial, folder, hard_links)
        done = Backup(
            dry_run=False,
            folder=str(folder),
            num_artifacts=len(copied),
            num_bytes=measure_files(list_files(partial)),
            duration_s=round(time.monotonic() - started, 2),
            incomplete=tuple(_find_incomplete(home, partial, copied)),
            not_included=_stores_elsewhere(home),
        )
        _write_mark(partial, {"of": home.path, **done.as_json(), "made_at": _now()})
        os.sync()  # the new name must not reach the disk before what it stands for
        partial.rename(folder)
    return done


def _destination(home: Home, folder: Path | None) -> Path:
    """Returns where the backup is to lie.

    Raises:
        HousekeepingError: something is there, or it is the home itself.
    """
    source = home.folder.resolve()
    if folder is None:
        folder = source.parent / "backups" / f"{source.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    folder = folder.expanduser().absolute()
    if folder.exists():
        raise HousekeepingError(
            f"FOLDER must not be there yet, got {folder}; name another, or leave it out"
        )
    if folder.resolve().is_relative_to(source):
        raise HousekeepingError(
            f"FOLDER must lie outside the home {source}, got {folder}; name another"
        )
    return folder


def _begin(home: Home, folder: Path, num_bytes: int) -> Path:
    """Returns the empty folder in which the copy is made.

    Raises:
        HousekeepingError: it is there and no backup, or the disk has too little room.
    """
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        if not (partial / MARK).exists():
            raise HousekeepingError(
                f"{partial} must be an unfinished backup to be replaced, and has no {MARK}; move "
                f"it elsewhere, or name another FOLDER"
            )
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(partial.parent).free
    if num_bytes > free:
        raise HousekeepingError(
            f"FOLDER must have room for {num_bytes} bytes, {partial.parent} has {free}; name a "
            f"folder on another disk, or prune first"
        )
    partial.mkdir()
    _write_mark(partial, {"of": home.path, "begun_at": _now(), "is_finished": False})
    return partial


def _copy_all(home: Home, partial: Path, folder: Path, hard_links: bool) -> list[Artifact]:
    """Returns the artifacts copied, after copying everything in the order that keeps it whole."""
    copy_files(list_files(home.folder / "dagster"), home.folder, partial)
    home.warehouse.copy_to(partial / _WAREHOUSE)
    if (home.folder / _MLFLOW).exists():
        copy_file(home.folder / _MLFLOW, partial / _MLFLOW)
        experiment = home.tracking().experiment
        rebase_addresses(partial / _MLFLOW, experiment, folder, root=MLFLOW_FILES)
    artifacts = Warehouse(partial / _WAREHOUSE).artifacts()
    for artifact in artifacts:
        files = list_files(home.artifacts.folder(artifact.stage, artifact.artifact_id))
        copy_files(files, home.folder, partial, hard_link=hard_links)
    copy_files(list_files(home.folder / MLFLOW_FILES), home.folder, partial, hard_link=hard_links)
    rest = list_files(home.folder, leave_out=(*_SEPARATELY, *_LEFT_OUT))
    copy_files(rest, home.folder, partial)
    _refuse_made_again(home, artifacts)
    return artifacts


def _refuse_made_again(home: Home, copied: Sequence[Artifact]) -> None:
    """Returns unless an artifact's files may be newer than its copied row.

    Raises:
        HousekeepingError: one was made again, with another content, while it was copied.
    """
    now = {artifact.artifact_id: artifact.data_version for artifact in home.warehouse.artifacts()}
    for artifact in copied:
        if now.get(artifact.artifact_id) != artifact.data_version:
            raise HousekeepingError(
                f"{artifact.artifact_id} must stay as it is while it is copied, and was made "
                f"again; back up again"
            )


def _find_incomplete(home: Home, partial: Path, artifacts: Sequence[Artifact]) -> Iterator[str]:
    """Returns the artifacts of the copy whose files, or weights, are not what they were made as."""
    store = ArtifactStore(partial / "artifacts")
    has_weights = home.settings().execution.mlflow_tracking_uri is None
    for artifact in artifacts:
        whole = store.is_whole(artifact.stage, artifact.artifact_id)
        if whole and artifact.stage == "checkpoint" and has_weights:
            folder = store.folder(artifact.stage, artifact.artifact_id)
            whole = is_as_logged(folder, partial / MLFLOW_FILES)
        if not whole:
            yield artifact.artifact_id


def _stores_elsewhere(home: Home) -> tuple[str, ...]:
    """Returns what of the home lies on servers, and so in no copy of it."""
    found = []
    if home.settings().execution.mlflow_tracking_uri is not None:
        found.append(f"MLflow at {home.tracking_uri}: back it up with its own means")
    configured = yaml.safe_load((home.folder / "dagster" / "dagster.yaml").read_text()) or {}
    if "storage" in configured:
        found.append("Dagster's storage, named in dagster.yaml: back it up with its own means")
    return tuple(found)


def _write_mark(folder: Path, values: dict[str, object]) -> None:
    (folder / MARK).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
