import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import UnreadableRow
from resources import row_files
from resources.row_files import expand_paths, format_of, read_file

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "Größe?\nx²", "answer": "#### 3"}]


def lines_of(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def error_of(path: Path, format_name: str) -> str:
    with pytest.raises(CorpusError) as caught:
        list(read_file(path, format_name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# expand_paths


def test_paths_and_globs_give_each_file_once_and_a_globs_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "z.jsonl", ".hidden.jsonl", "deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    patterns = [f"{tmp_path}/z.jsonl", f"{tmp_path}/*.jsonl", f"{tmp_path}/**/c.jsonl"]
    found = expand_paths(patterns, parameter="corpus.paths")
    assert [path.name for path in found] == ["z.jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "part[1].jsonl").touch()
    (tmp_path / "part1.jsonl").touch()
    found = expand_paths([f"{tmp_path}/part[1].jsonl"], parameter="corpus.paths")
    assert [path.name for path in found] == ["part[1].jsonl"]


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CorpusError) as caught:
        expand_paths([f"{tmp_path}/no.jsonl"], parameter="corpus.paths")
    assert str(caught.value) == (
        f"corpus.paths must name files that exist, got {tmp_path}/no.jsonl; "
        "correct the path (a relative one starts at the project's root)"
    )


def test_a_glob_that_matches_nothing_is_one_sentence(tmp_path):
    with pytest.raises(CorpusError) as caught:
        expand_paths([f"{tmp_path}/*.jsonl"], parameter="corpus.paths")
    assert str(caught.value) == (
        f"corpus.paths must match at least one file, got the glob {tmp_path}/*.jsonl that matches "
        "none; correct the pattern (a relative one starts at the project's root)"
    )


def test_a_folder_is_one_sentence(tmp_path):
    with pytest.raises(CorpusError) as caught:
        expand_paths([f"{tmp_path}/"], parameter="corpus.paths")
    assert str(caught.value) == (
        f"corpus.paths must name files, got the folder {tmp_path}; "
        f"name its files with a glob such as {tmp_path}/*.jsonl"
    )


# format_of


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("A.PARQUET", "parquet"),
        ("a.b.csv", "csv"),
    ],
)
def test_the_suffix_tells_the_format(name, format_name):
    assert format_of(Path(name), parameter="corpus.format") == format_name


def test_an_unknown_suffix_is_one_sentence():
    with pytest.raises(CorpusError) as caught:
        format_of(Path("/data/a.txt"), parameter="corpus.format")
    assert str(caught.value) == (
        "corpus.format must be set where a file's name does not tell its format, got auto for "
        "/data/a.txt; set it to jsonl, parquet or csv, or rename the file to end in .jsonl, "
        ".jsonl.gz, .ndjson, .parquet, .csv"
    )


# JSONL


@pytest.mark.parametrize("opened", [open, gzip.open])
def test_jsonl_rows_plain_and_compressed(tmp_path, opened):
    path = tmp_path / "a.jsonl"
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(lines_of(ROWS))
    assert list(read_file(path, "jsonl")) == list(enumerate(ROWS))


def test_a_position_is_a_line_and_blank_lines_count(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_file(path, "jsonl")) == [(0, {"a": 1}), (3, {"a": 2})]


def test_a_unicode_line_separator_is_no_end_of_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert list(read_file(path, "jsonl")) == [(0, {"a": "one\u2028two\x85three"})]


def test_torn_lines_among_good_ones_are_handed_on_as_unreadable(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n[3]\n{"a": 4}\n', encoding="utf-8")
    rows = dict(read_file(path, "jsonl"))
    assert (rows[0], rows[3]) == ({"a": 1}, {"a": 4})
    assert isinstance(rows[1], UnreadableRow)
    assert rows[1].reason == "not_json"
    assert rows[1].detail == (
        "no JSON (Expecting ',' delimiter: line 2 column 1 (char 8)): '{\"a\": 2'"
    )
    assert rows[2] == UnreadableRow("not_json", "no JSON object: '[3]'")


def test_deeply_nested_json_is_one_torn_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + "[" * 100_000 + "\n", encoding="utf-8")
    rows = dict(read_file(path, "jsonl"))
    assert isinstance(rows[1], UnreadableRow)


@pytest.mark.parametrize(
    ("text", "line", "detail"),
    [
        ("[\n", 1, "no JSON (Expecting value: line 2 column 1 (char 2)): '['"),
        ('\n\n"text"\n', 3, "no JSON object: '\"text\"'"),
        ("a,b\n1,2\n", 1, "no JSON (Expecting value: line 1 column 1 (char 0)): 'a,b'"),
    ],
)
def test_a_first_line_that_is_no_object_is_one_sentence(tmp_path, text, line, detail):
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    assert error_of(path, "jsonl") == (
        f"{path} must hold one JSON object a line, got on line {line} {detail}; "
        "convert it to JSON lines, or set corpus.format"
    )


@pytest.mark.parametrize("format_name", ["jsonl", "csv"])
def test_text_that_is_not_utf8_is_one_sentence(tmp_path, format_name):
    path = tmp_path / f"a.{format_name}"
    first = {"jsonl": b'{"a": 1}\n', "csv": b"a,b\n"}[format_name]
    path.write_bytes(first + b'{"a": "caf\xe9"}\n')
    assert error_of(path, format_name) == (
        f"{path} must be in UTF-8, got the byte 0xe9 on line 2; "
        "convert it, for example with iconv -f latin1 -t utf-8"
    )


def test_a_truncated_gzip_file_is_one_sentence(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(lines_of({"n": str(n)} for n in range(50_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    message = error_of(path, "jsonl")
    assert message.startswith(f"{path} must be a readable file, got an error after part of it (")
    assert message.endswith("); restore the file, or take it out of corpus.paths")


def test_jsonl_is_read_as_a_stream(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 100_000 + b"\xff\n")
    rows = read_file(path, "jsonl")
    assert [next(rows) for _ in range(3)] == [(0, {"a": 1}), (1, {"a": 1}), (2, {"a": 1})]


# CSV


def test_csv_rows_are_text_with_quotes_and_line_breaks_kept(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfquestion,answer\r\n"1, 2 and\n""3""?",6\r\n\r\nx,\r\n')
    assert list(read_file(path, "csv")) == [
        (0, {"question": '1, 2 and\n"3"?', "answer": "6"}),
        (1, {"question": "x", "answer": ""}),
    ]


def test_csv_fields_may_be_longer_than_the_librarys_default_limit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"a\n{'x' * 200_000}\n", encoding="utf-8")
    assert list(read_file(path, "csv")) == [(0, {"a": "x" * 200_000})]


def test_a_csv_row_with_another_number_of_fields_is_unreadable(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1\n1,2,3\n", encoding="utf-8")
    assert list(read_file(path, "csv")) == [
        (0, {"a": "1", "b": "2"}),
        (1, UnreadableRow("not_csv", "1 fields for 2 columns: '1'")),
        (2, UnreadableRow("not_csv", "3 fields for 2 columns: '1,2,3'")),
    ]


@pytest.mark.parametrize(("text", "header"), [("", "None"), ("a,a\n1,2\n", "['a', 'a']")])
def test_a_csv_file_without_distinct_column_names_is_one_sentence(tmp_path, text, header):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    assert error_of(path, "csv") == (
        f"{path} must start with a line of distinct column names, got {header}; "
        "add or correct the header"
    )


def test_a_csv_file_with_an_open_quote_is_one_sentence(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n"3,4\n', encoding="utf-8")
    assert error_of(path, "csv") == (
        f"{path} must be a CSV file, got near line 3: unexpected end of data; "
        "correct the line, or set corpus.format"
    )


# Parquet


def test_parquet_rows_with_nested_columns(tmp_path):
    rows = [{**row, "tags": ["x"], "meta": {"n": n}} for n, row in enumerate(ROWS)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert list(read_file(path, "parquet")) == list(enumerate(rows))


def test_parquet_positions_run_on_over_batches_and_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "BATCH_ROWS", 3)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(20)}), path, row_group_size=7)
    assert list(read_file(path, "parquet")) == [(n, {"n": n}) for n in range(20)]


@pytest.mark.parametrize("content", [b"", b'{"a": 1}\n', b"PAR1 and no more"])
def test_a_file_that_is_no_parquet_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    message = error_of(path, "parquet")
    assert message.startswith(f"{path} must be a Parquet file, got: ")
    assert message.endswith("; restore the file, or set corpus.format")


# Anything at all


def rows_or_refusal(path: Path, format_name: str):
    """Returns what a file is refused with, or None, and its rows."""
    try:
        return None, list(read_file(path, format_name))
    except CorpusError as refused:
        return str(refused), []


@given(
    content=st.binary(max_size=300)
    | st.text(max_size=300).map(str.encode)
    | st.binary(max_size=50).map(gzip.compress)
    | st.lists(st.sampled_from([b'{"a": 1}', b"[", b'"', b"a,b", b"\xff", b"\r"])).map(b"\n".join),
    format_name=st.sampled_from(["jsonl", "csv", "parquet"]),
)
@settings(max_examples=400, deadline=None)
def test_whatever_a_file_holds_is_read_or_refused_in_one_sentence(
    tmp_path_factory, content, format_name
):
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_bytes(content)
    said, rows = rows_or_refusal(path, format_name)
    if said is not None:
        assert "\n" not in said
        assert str(path) in said
    positions = [position for position, _ in rows]
    assert positions == sorted(set(positions))
    assert all(isinstance(row, dict | UnreadableRow) for _, row in rows)


@given(seed=st.integers(0, 2**16), at=st.floats(0, 1), with_=st.binary(min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_damaged_parquet_file_is_read_or_refused(tmp_path_factory, seed, at, with_):
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    rows = [{"a": f"{seed} {i}", "b": [{"c": i}] * (i % 3)} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    content = bytearray(path.read_bytes())
    start = int(at * (len(content) - len(with_)))
    content[start : start + len(with_)] = with_
    path.write_bytes(content)
    said, _ = rows_or_refusal(path, "parquet")
    assert said is None or str(path) in said
