"""Copying a home's files while others work in it: databases as they stand at one moment.

A SQLite database is copied by its own online backup. A folder's other files are copied as they are;
what is being written goes by names that are left out.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

_SQLITE = b"SQLite format 3\x00"
# Files of a database that is open: the online backup has what they hold.
_BESIDE_SQLITE = ("-wal", "-shm", "-journal")
_UNFINISHED = (".tmp", ".part")


def copy_sqlite(source: Path, destination: Path) -> None:
    """Returns when `destination` is the database as it is at one moment, writers or not."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    uri = f"{source.resolve().as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as live,
        contextlib.closing(sqlite3.connect(destination)) as copy,
    ):
        live.backup(copy)
        # Alone in its file, without a log beside it that a rename would leave behind.
        copy.execute("pragma journal_mode = delete")


def is_sqlite(path: Path) -> bool:
    """Returns whether a file is a SQLite database."""
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def list_files(folder: Path, *, leave_out: Collection[str] = ()) -> Iterator[Path]:
    """Returns the files under a folder, but for those being written and the entries named."""
    for here, folders, files in os.walk(folder):  # it passes over a folder that is gone meanwhile
        is_top = Path(here) == folder
        for names in (folders, files):
            names[:] = sorted(
                name
                for name in names
                if not name.endswith(_UNFINISHED) and not (is_top and name in leave_out)
            )
        yield from (Path(here, name) for name in files if not name.endswith(_BESIDE_SQLITE))


def measure_files(files: Iterable[Path]) -> int:
    """Returns the size of the files in bytes; one that is gone meanwhile has none."""
    num_bytes = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            num_bytes += path.stat().st_size
    return num_bytes


def copy_files(files: Iterable[Path], source: Path, destination: Path, **how: bool) -> None:
    """Returns when the files under `source` are copied to their places under `destination`.

    One that is gone since it was listed is no file of the folder any more, and passed over.
    """
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            copy_file(path, destination / path.relative_to(source), **how)


def copy_file(source: Path, destination: Path, *, hard_link: bool = False) -> None:
    """Returns when the file is copied, or is the same file under a second name."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if hard_link:
        os.link(source, destination)
    elif is_sqlite(source):
        copy_sqlite(source, destination)
    else:
        shutil.copy2(source, destination)
