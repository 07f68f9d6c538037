"""Rows of local JSONL, Parquet and CSV files, as a stream.

A file that is not what its name or the settings say ends in one `CorpusError`. A single torn row
among good ones does not: it is handed on as an `UnreadableRow`, to be quarantined.
"""

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import UnreadableRow
from circuitseer_assets.settings import resolve_path
from resources.parquet_limits import MAX_ROW_BYTES, rows_at_once, too_long

Row = dict[str, Any] | UnreadableRow
BATCH_ROWS = 256
_FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
}


def expand_paths(patterns: Sequence[str], *, parameter: str) -> list[Path]:
    """Returns the files that paths and globs name, each once, a glob's matches sorted.

    Raises:
        CorpusError: a path is missing or a folder, or a glob matches nothing, or what lies outside
            of its folder.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = resolve_path(pattern)
        if path.is_file():
            files[path] = None
        elif path.is_dir():
            raise CorpusError(
                f"{parameter} must name files, got the folder {path}; "
                f"name its files with a glob such as {pattern.rstrip('/')}/*.jsonl"
            )
        elif glob.has_magic(pattern):
            files |= dict.fromkeys(_matches(pattern, path, parameter))
        else:
            raise CorpusError(
                f"{parameter} must name files that exist, got {path}; "
                "correct the path (a relative one starts at the project's root)"
            )
    return list(files)


def _matches(pattern: str, path: Path, parameter: str) -> list[Path]:
    found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    matches = sorted(m for m in found if m.is_file() and not m.name.startswith("."))
    if not matches:
        raise CorpusError(
            f"{parameter} must match at least one file, got the glob {path} that matches none; "
            "correct the pattern (a relative one starts at the project's root)"
        )
    folder = _folder_of(path).resolve()
    for match in matches:
        if not match.resolve().is_relative_to(folder):
            raise CorpusError(
                f"{parameter} must match files that lie in {folder}, got {match}, a link to "
                f"{match.resolve()}; remove the link, or name that file itself"
            )
    return matches


def _folder_of(pattern: Path) -> Path:
    """Returns the folder that a glob starts in: all of its parts before the first magic one."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def format_of(path: Path, *, parameter: str) -> str:
    """Returns the format that a file's name tells: `jsonl`, `parquet` or `csv`.

    Raises:
        CorpusError: the name ends in no suffix known here.
    """
    for suffix, format_name in _FORMAT_OF_SUFFIX.items():
        if path.name.lower().endswith(suffix):
            return format_name
    raise CorpusError(
        f"{parameter} must be set where a file's name does not tell its format, got auto for "
        f"{path}; set it to jsonl, parquet or csv, or rename the file to end in "
        f"{', '.join(_FORMAT_OF_SUFFIX)}"
    )


def read_file(path: Path, format_name: str) -> Iterator[tuple[int, Row]]:
    """Returns a stream of the positions, from 0, and rows of one file.

    Raises:
        CorpusError: while reading, if the file is not in that format or not in UTF-8.
    """
    return _READERS[format_name](path)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Returns the rows of a JSONL file; a row's position is its line, blank lines counted.

    The first line must hold an object, or the file is no JSONL; a later line that does not is one
    torn row.
    """
    is_first = True
    for position, line in enumerate(_read_lines(path)):
        text = _decoded(line, path, position)
        if not text.strip():
            continue
        row = _parse_line(text)
        if is_first and isinstance(row, UnreadableRow):
            raise CorpusError(
                f"{path} must hold one JSON object a line, got on line {position + 1} "
                f"{row.detail}; convert it to JSON lines, or set corpus.format"
            )
        is_first = False
        yield position, row


def _parse_line(text: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return UnreadableRow("not_json", f"no JSON ({error}): {_beginning(text)}")
    if not isinstance(row, dict):
        return UnreadableRow("not_json", f"no JSON object: {_beginning(text)}")
    return row


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if compressed else raw
            number = 0
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if len(line) > MAX_ROW_BYTES:
                    raise CorpusError(too_long(path, f"on line {number}"))
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(
            f"{path} must be a readable file, got an error after part of it ({error}); "
            "restore the file, or take it out of corpus.paths"
        ) from error


def _decoded(line: bytes, path: Path, position: int) -> str:
    try:
        return line.decode("utf-8-sig" if position == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(_not_utf8(path, position + 1, error)) from error


def _not_utf8(path: Path, line_number: int, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return (
        f"{path} must be in UTF-8, got the byte 0x{byte:02x} on line {line_number}; "
        "convert it, for example with iconv -f latin1 -t utf-8"
    )


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Returns the rows of a CSV file with a header; all values are text, an empty field is ''."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = (_decoded(line, path, number) for number, line in enumerate(_read_lines(path)))
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
        if not header or len(set(header)) < len(header):
            raise CorpusError(
                f"{path} must start with a line of distinct column names, got {header}; "
                "add or correct the header"
            )
        position = 0
        for fields in reader:
            if not fields:
                continue
            yield position, _csv_row(header, fields)
            position += 1
    except csv.Error as error:
        raise CorpusError(
            f"{path} must be a CSV file, got near line {reader.line_num}: {error}; "
            "correct the line, or set corpus.format"
        ) from error


def _csv_row(header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        return UnreadableRow(
            "not_csv",
            f"{len(fields)} fields for {len(header)} columns: {_beginning(','.join(fields))}",
        )
    return dict(zip(header, fields, strict=True))


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    """Returns the rows of a Parquet file, decoded a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    position = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                size = rows_at_once(file, group, path, at_most=BATCH_ROWS)
                for batch in file.iter_batches(batch_size=size, row_groups=[group]):
                    for row in batch.to_pylist():
                        yield position, row
                        position += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"{path} must be a Parquet file, got: {reason}; restore the file, or set corpus.format"
        ) from error


def _beginning(text: str) -> str:
    shown = ascii(text.strip())
    return shown if len(shown) <= 60 else shown[:57] + "..."


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "csv": _read_csv,
}
