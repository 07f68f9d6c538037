"""How much of a Parquet file is decoded at once, so that a small file cannot fill the memory.

A value that many rows share is stored once and decoded for each of them; and a page compresses by
any factor. What a row group unpacks to is therefore looked up before it is decoded.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from circuitseer_assets.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROW_BYTES = 64 * 2**20
"""What a row may have at most, in any format: a hundred times the longest reasoning traces."""
MAX_BATCH_BYTES = 256 * 2**20
MAX_GROUP_BYTES = 2**30
_LARGEST_RATIO = 100  # text compresses by 3 to 10
_BYTES_A_VALUE = 8


def rows_at_once(file: "pq.ParquetFile", row_group: int, path: Path, *, at_most: int) -> int:
    """Returns how many rows of the row group may be decoded together.

    Raises:
        CorpusError: it unpacks to far more than it takes on disk, or one of its values is longer
            than a row may be.
    """
    group = file.metadata.row_group(row_group)
    chunks = [group.column(i) for i in range(group.num_columns)]
    unpacked = sum(max(c.total_uncompressed_size, _BYTES_A_VALUE * c.num_values) for c in chunks)
    packed = sum(chunk.total_compressed_size for chunk in chunks)
    if unpacked > max(MAX_GROUP_BYTES, _LARGEST_RATIO * packed):
        raise CorpusError(
            f"a row group of {path} must unpack to at most {MAX_GROUP_BYTES:,} bytes or "
            f"{_LARGEST_RATIO} times what it takes on disk, got {unpacked:,} from {packed:,}; "
            f"take the file out of corpus.paths, or write it anew with smaller row groups"
        )
    longest = _longest_shared_value(file, row_group, path)
    if longest > MAX_ROW_BYTES:
        raise CorpusError(too_long(path, f"in row group {row_group}", longest))
    return max(1, min(at_most, MAX_BATCH_BYTES // max(1, longest)))


def too_long(path: Path, where: str, num_bytes: int | None = None) -> str:
    """Returns what is said of a file with a row that is too long."""
    got = "a longer one" if num_bytes is None else f"a value of {num_bytes:,}"
    return (
        f"{path} must have rows of at most {MAX_ROW_BYTES:,} bytes, got {got} {where}; take the "
        f"row out, or the file out of corpus.paths"
    )


def _longest_shared_value(file: "pq.ParquetFile", row_group: int, path: Path) -> int:
    """Returns the bytes of the longest value that a dictionary of the row group holds."""
    import pyarrow.parquet as pq

    group = file.metadata.row_group(row_group)
    shared = [
        group.column(i).path_in_schema
        for i in range(group.num_columns)
        if group.column(i).has_dictionary_page and group.column(i).physical_type == "BYTE_ARRAY"
    ]
    if not shared:
        return 0
    # Opened anew: which columns keep their dictionary is said when a file is opened.
    with pq.ParquetFile(path, read_dictionary=shared) as reopened:
        one_row = reopened.iter_batches(batch_size=1, row_groups=[row_group], columns=shared)
        batch = next(one_row, None)
    return max(map(_longest_in_dictionaries, batch.columns), default=0) if batch else 0


def _longest_in_dictionaries(array: "pa.Array") -> int:
    """Returns the bytes of the longest dictionary value of an array, however nested."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.DictionaryArray):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if isinstance(array, pa.StructArray):
        return max(map(_longest_in_dictionaries, array.flatten()), default=0)
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.MapArray):
        return _longest_in_dictionaries(array.values)
    return 0
