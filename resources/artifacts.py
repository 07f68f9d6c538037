"""The artifact store: folders of files that count only when whole, named by their artifact id.

A folder is written beside its destination and renamed into place with a manifest of its files'
digests, so that a killed process leaves nothing that could be taken for a result.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from circuitseer_assets.errors import ArtifactError
from resources.processes import is_running

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY = re.compile(r"\.(?P<artifact_id>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of the file's bytes, 64 hexadecimal digits.

    Raises:
        ArtifactError: the file does not exist.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"the file {path} does not exist; restore it or name another"
        ) from error


def digest_files(paths: Iterable[Path]) -> dict[str, str]:
    """Returns the SHA-256 of each file's bytes by its path, as given, in the order of the paths.

    Raises:
        ArtifactError: a file does not exist.
    """
    return {path.as_posix(): digest_file(path) for path in sorted(paths)}


def data_version_of(folder: Path, names: Iterable[str] | None = None) -> str:
    """Returns 16 hexadecimal digits that change when a file's name or content does.

    Args:
        folder: where the files are.
        names: the files that count, relative to `folder`; all but the manifest when left out.

    Raises:
        ArtifactError: a named file does not exist, or the folder holds no file.
    """
    chosen = _file_names(folder) if names is None else sorted(names)
    if not chosen:
        raise ArtifactError(f"the folder {folder} must hold at least one file to have a version")
    lines = [f"{digest_file(folder / name)}  {name}\n" for name in chosen]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


class ArtifactStore:
    """Folders of files under `root/<stage>/<artifact_id>/`, each whole or absent."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str, artifact_id: str) -> Path:
        """Returns where the artifact's files lie, or would lie.

        Raises:
            ArtifactError: the stage or the id could not be a folder's name.
        """
        for what, name in (("stage", stage), ("artifact_id", artifact_id)):
            if not _NAME.fullmatch(name):
                raise ArtifactError(
                    f"{what} must be letters, digits, dots, dashes and underscores, got {name!r}; "
                    f"take it from the table artifacts"
                )
        return self.root / stage / artifact_id

    @contextlib.contextmanager
    def write(self, stage: str, artifact_id: str) -> Iterator[Path]:
        """Yields an empty folder that becomes the artifact when the block ends without exception.

        An artifact that is there already and whole stays, and the new files are discarded; a
        broken one is replaced.

        Raises:
            ArtifactError: the block wrote no file, or something that is not a plain file.
        """
        destination = self.folder(stage, artifact_id)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination.parent)
        temporary = _temporary_beside(destination)
        temporary.mkdir()
        try:
            yield temporary
            _write_manifest(temporary)
            self._put_in_place(temporary, stage, artifact_id)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def verify(self, stage: str, artifact_id: str) -> None:
        """Returns when every file of the artifact is what it was when the artifact was made.

        Raises:
            ArtifactError: the artifact is missing, or a file is missing, changed or new.
        """
        for problem in self.find_problems(stage, artifact_id):
            raise ArtifactError(problem)

    def find_problems(self, stage: str, artifact_id: str) -> Iterator[str]:
        """Returns of each file that is not what it was when the artifact was made how it differs.

        Raises:
            ArtifactError: the artifact's manifest is missing or no manifest.
        """
        folder = self.folder(stage, artifact_id)
        recorded = _read_manifest(folder)
        present = set(_file_names(folder))
        remedy = "delete the folder and run again to make it anew"
        for name, entry in recorded.items():
            if name not in present:
                yield f"{folder / name} is missing; {remedy}"
                continue
            num_bytes = (folder / name).stat().st_size
            if num_bytes != entry["bytes"]:
                yield f"{folder / name} must have {entry['bytes']} bytes, got {num_bytes}; {remedy}"
                continue
            digest = digest_file(folder / name)
            if digest != entry["sha256"]:
                yield (
                    f"{folder / name} must have the SHA-256 {entry['sha256']}, got {digest}; "
                    f"{remedy}"
                )
        for name in sorted(present - recorded.keys()):
            yield f"{folder / name} is not in {MANIFEST}; move it elsewhere"

    def is_whole(self, stage: str, artifact_id: str) -> bool:
        """Returns whether the artifact is there and every file of it is what it was."""
        try:
            self.verify(stage, artifact_id)
        except ArtifactError:
            return False
        return True

    def is_present(self, stage: str, artifact_id: str) -> bool:
        """Returns whether every file of the artifact is there with its size; nothing is read."""
        folder = self.folder(stage, artifact_id)
        try:
            recorded = _read_manifest(folder)
            return all((folder / n).stat().st_size == e["bytes"] for n, e in recorded.items())
        except (ArtifactError, FileNotFoundError):
            return False

    def num_bytes(self, stage: str, artifact_id: str) -> int:
        """Returns the size of all its files; 0 where it has none."""
        files = self.folder(stage, artifact_id).rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def remove(self, stage: str, artifact_id: str) -> None:
        """Returns when the artifact's files are gone; a reader sees all of them or none."""
        folder = self.folder(stage, artifact_id)
        if folder.exists():
            broken = _temporary_beside(folder)
            folder.rename(broken)
            shutil.rmtree(broken, ignore_errors=True)

    def _put_in_place(self, temporary: Path, stage: str, artifact_id: str) -> None:
        destination = self.folder(stage, artifact_id)
        if destination.exists() and not self.is_whole(stage, artifact_id):
            self.remove(stage, artifact_id)
        try:
            temporary.replace(destination)
        except OSError:
            # A folder that is not empty cannot be replaced: another process was first.
            self.verify(stage, artifact_id)


def _temporary_beside(destination: Path) -> Path:
    name = f".{destination.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    return destination.with_name(name)


def leftovers_of(root: Path) -> list[Path]:
    """Returns the unfinished folders anywhere under `root` whose process is gone."""
    found = []
    for path in sorted(root.rglob(".*.tmp")):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not is_running(int(match["pid"])):
            found.append(path)
    return found


def _remove_leftovers(parent: Path) -> None:
    for path in leftovers_of(parent):
        shutil.rmtree(path, ignore_errors=True)


def _file_names(folder: Path) -> list[str]:
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(
                f"{path} must be a plain file, so that the artifact stands alone; copy it instead"
            )
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    return sorted(name for name in names if name != MANIFEST)


def _write_manifest(folder: Path) -> None:
    names = _file_names(folder)
    if not names:
        raise ArtifactError(f"an artifact must hold at least one file, got none in {folder}")
    files = {
        name: {"sha256": digest_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }
    text = json.dumps({"files": files}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, dict[str, str | int]]:
    path = folder / MANIFEST
    try:
        files: dict[str, dict[str, str | int]] = json.loads(path.read_text("utf-8"))["files"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run again to make the artifact anew") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} must be a manifest; delete the folder, run again") from error
    return files
