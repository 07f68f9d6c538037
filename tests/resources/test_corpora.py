import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.method.word_problems import FAMILIES
from circuitseer_assets.records import QuarantinedRow, Sample
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    Columns,
    FilesCorpus,
    HubCorpus,
    ReasoningGymCorpus,
    WordProblemsCorpus,
)
from resources.corpora import (
    columns_of,
    corpus_files,
    gsm_symbolic_templates,
    held_out_problems,
    read_rows,
)

PAIR = Columns(prompt="question", response="answer")
ROWS = [
    {"question": "Tom has 3 pens, and buys 4. How many now?", "answer": "3+4=<<3+4=7>>7\n#### 7"},
    {"question": "Größe: 2 \u00d7 600?", "answer": 'He said "1,200".\n#### 1,200'},
    {"question": "Nothing said", "answer": ""},
    {"question": "Tom has 3 pens, and  buys 4. How many now?", "answer": "3+4=<<3+4=7>>7\n#### 7"},
]


def write_jsonl(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows=ROWS) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, rows=ROWS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def files_corpus(*paths: object, columns: Columns = PAIR, **rest: object) -> FilesCorpus:
    return FilesCorpus(
        source="files", paths=tuple(str(path) for path in paths), columns=columns, **rest
    )


def curated(settings) -> list[Sample | QuarantinedRow]:
    return list(curate_rows(read_rows(settings), columns_of(settings)))


def error_of(settings) -> str:
    with pytest.raises(CorpusError) as caught:
        curated(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# files


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_csv])
def test_a_file_gives_samples_and_quarantined_rows(tmp_path, write):
    name = f"train.{write.__name__.removeprefix('write_')}"
    first, second, third, fourth = curated(files_corpus(write(tmp_path / name)))
    assert (first.prompt, first.response) == (ROWS[0]["question"], ROWS[0]["answer"])
    assert (first.answer, second.answer) == ("7", "1200")
    assert (second.source, second.position) == (name, 1)
    assert second.original == ROWS[1]
    assert third == QuarantinedRow(name, 2, "no_response", "column 'answer' is blank")
    assert fourth.reason == "duplicate"


def test_every_format_gives_identical_samples(tmp_path):
    paths = [
        write_jsonl(tmp_path / "1" / "rows"),
        write_parquet(tmp_path / "rows.2"),
        write_csv(tmp_path / "rows.3"),
    ]
    read = []
    for path, format_name in zip(paths, ("jsonl", "parquet", "csv"), strict=True):
        named = path.rename(path.with_name("rows"))
        read.append(curated(files_corpus(named, format=format_name)))
        named.unlink()
    assert read[0] == read[1] == read[2]


def test_chats_are_identical_from_jsonl_and_parquet(tmp_path):
    rows = [
        {
            "id": n,
            "conversations": [
                {"from": "human", "value": f"What is {n} + 1?"},
                {"from": "gpt", "value": f"#### {n + 1}"},
            ],
        }
        for n in range(3)
    ]
    columns = Columns(messages="conversations")
    read = [
        curated(files_corpus(write(tmp_path / "rows", rows), columns=columns, format=format_name))
        for write, format_name in ((write_jsonl, "jsonl"), (write_parquet, "parquet"))
    ]
    assert read[0] == read[1]
    assert [sample.answer for sample in read[0]] == ["1", "2", "3"]
    assert read[0][2].original == rows[2]


def test_files_are_read_in_the_order_named_and_a_globs_sorted(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "first.jsonl"):
        write_jsonl(tmp_path / name, [{"question": name, "answer": "A"}])
    settings = files_corpus(tmp_path / "first.jsonl", tmp_path / "?.jsonl")
    assert [sample.source for sample in curated(settings)] == ["first.jsonl", "a.jsonl", "b.jsonl"]
    assert [path.name for path in corpus_files(settings)] == ["first.jsonl", "a.jsonl", "b.jsonl"]


def test_files_of_one_name_are_told_apart_without_naming_the_machine(tmp_path):
    for folder in ("algebra", "geometry"):
        write_jsonl(tmp_path / folder / "rows.jsonl", [{"question": folder, "answer": "A"}])
    sources = [sample.source for sample in curated(files_corpus(tmp_path / "*" / "rows.jsonl"))]
    assert sources == ["algebra/rows.jsonl", "geometry/rows.jsonl"]


def test_a_relative_path_starts_at_the_projects_root(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl")
    relative = os.path.relpath(path, PROJECT_ROOT)
    assert corpus_files(files_corpus(relative)) == [path.resolve()]


def test_a_torn_line_is_quarantined(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:2])
    path.write_text(path.read_text(encoding="utf-8") + '{"question": "cut', encoding="utf-8")
    torn = curated(files_corpus(path))[2]
    assert (torn.position, torn.reason) == (2, "not_json")


def test_max_rows_stops_the_reading(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl")
    path.write_bytes(path.read_bytes() + b"\xff\n")
    assert len(curated(files_corpus(path, max_rows=3))) == 3


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_csv])
@pytest.mark.parametrize(
    ("parameter", "columns"),
    [
        ("prompt", Columns(prompt="nope", response="answer")),
        ("response", Columns(prompt="question", response="nope")),
        ("answer", Columns(prompt="question", response="answer", answer="nope")),
        ("messages", Columns(messages="nope")),
    ],
)
def test_an_unknown_column_is_one_sentence(tmp_path, write, parameter, columns):
    path = write(tmp_path / f"rows.{write.__name__.removeprefix('write_')}")
    assert error_of(files_corpus(path, columns=columns)) == (
        f"corpus.columns.{parameter} must name a column of {path}, got 'nope'; "
        "choose one of 'question', 'answer'"
    )


def test_the_columns_of_every_file_are_checked(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    path = write_jsonl(tmp_path / "b.jsonl", [{"problem": "Q", "answer": "A"}])
    assert error_of(files_corpus(tmp_path / "*.jsonl")).startswith(
        f"corpus.columns.prompt must name a column of {path}, got 'question'; "
    )


def test_a_missing_file_and_an_unknown_suffix_are_one_sentence(tmp_path):
    assert error_of(files_corpus(tmp_path / "no.jsonl")).startswith(
        f"corpus.paths must name files that exist, got {tmp_path}/no.jsonl; "
    )
    path = write_jsonl(tmp_path / "rows.txt")
    assert error_of(files_corpus(path)).startswith(
        f"corpus.format must be set where a file's name does not tell its format, got auto for "
        f"{path}; "
    )


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_an_empty_file_is_a_corpus_without_a_usable_row(tmp_path, write):
    path = write(tmp_path / f"rows.{write.__name__.removeprefix('write_')}", [])
    assert error_of(files_corpus(path)).startswith(
        "the corpus must hold at least one usable row, got 0 of 0; "
    )


# hub


HUB = HubCorpus(source="hub", repo_id="someone/no-such-set", revision="0" * 40, columns=PAIR)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's cache as `hf download` leaves it, with one data set at one commit."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--someone--sums"
    blob = write_jsonl(repository / "blobs" / "abc", ROWS)
    snapshot = repository / "snapshots" / ("1" * 40) / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to(blob)
    return repository


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_an_unreachable_hub_is_one_sentence(hub_cache, monkeypatch, variable):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, "1")
    message = error_of(HUB)
    assert message.startswith(
        f"corpus.repo_id must name a data set that can be read, got someone/no-such-set@{'0' * 40},"
        " split 'train' (LocalEntryNotFoundError: "
    )
    assert message.endswith(
        f"); fetch it with `hf download --repo-type dataset someone/no-such-set --revision "
        f"{'0' * 40}` where the hub can be reached, or unset HF_HUB_OFFLINE"
    )


def test_a_data_set_in_the_cache_is_read_offline(hub_cache):
    settings = HUB.model_copy(update={"repo_id": "someone/sums", "revision": "1" * 40})
    rows = curated(settings)
    assert [row.position for row in rows] == [0, 1, 2, 3]
    assert {row.source for row in rows} == {"someone/sums"}
    assert rows[0].original == ROWS[0]
    assert rows[2].reason == "no_response"
    assert len(curated(settings.model_copy(update={"max_rows": 2}))) == 2


def test_another_revision_than_the_cached_one_is_refused(hub_cache):
    settings = HUB.model_copy(update={"repo_id": "someone/sums", "revision": "2" * 40})
    assert "LocalEntryNotFoundError" in error_of(settings)


def test_an_unknown_split_and_column_are_one_sentence(hub_cache):
    settings = HUB.model_copy(update={"repo_id": "someone/sums", "revision": "1" * 40})
    message = error_of(settings.model_copy(update={"split": "nope"}))
    assert f"got someone/sums@{'1' * 40}, split 'nope' (" in message
    columns = Columns(prompt="nope", response="answer")
    assert error_of(settings.model_copy(update={"columns": columns})) == (
        f"corpus.columns.prompt must name a column of someone/sums@{'1' * 40}, got 'nope'; "
        "choose one of 'question', 'answer'"
    )


# word_problems


def test_word_problems_carry_family_template_and_steps():
    settings = WordProblemsCorpus(
        source="word_problems", num_samples=40, seed=3, families=FAMILIES[:1], max_steps=2
    )
    samples = [row for row in curated(settings) if isinstance(row, Sample)]
    assert {sample.source for sample in samples} == {FAMILIES[0]}
    for sample in samples:
        assert sample.original["family"] == FAMILIES[0]
        assert sample.original["template_id"].startswith(f"{FAMILIES[0]}:")
        assert sample.original["num_steps"] in (1, 2)
        assert sample.response.endswith(f"#### {sample.answer}")


def test_planted_noise_is_a_share_of_the_rows_and_says_so():
    settings = WordProblemsCorpus(source="word_problems", num_samples=1000, wrong_share=0.4)
    rows = [row for _, _, row in read_rows(settings)]
    clean = [row for _, _, row in read_rows(settings.model_copy(update={"wrong_share": 0.0}))]
    wrong = [row["is_planted_noise"] for row in rows]
    assert 350 <= sum(wrong) <= 450
    for row, original, is_wrong in zip(rows, clean, wrong, strict=True):
        assert row["prompt"] == original["prompt"]
        assert (row["answer"] != original["answer"]) == is_wrong
        assert "is_planted_noise" not in original


def test_held_out_word_problems_share_no_template_with_the_corpus():
    settings = WordProblemsCorpus(source="word_problems", num_samples=2000)
    trained = {row["template_id"] for _, _, row in read_rows(settings)}
    held_out = list(held_out_problems("word_problems", 500, seed=0))
    columns = {"doc_id", "problem", "answer", "solution", "family", "template", "num_steps"}
    assert set(held_out[0]) == columns
    assert all(p["solution"].endswith(f"#### {p['answer']}") for p in held_out)
    assert not trained & {problem["template"] for problem in held_out}
    assert len({problem["doc_id"] for problem in held_out}) == 500


# gsm_symbolic


def gym(num_samples: int, **rest) -> ReasoningGymCorpus:
    return ReasoningGymCorpus(source="reasoning_gym", num_samples=num_samples, **rest)


def test_templates_are_split_in_two_parts_that_do_not_depend_on_the_seed():
    train = gsm_symbolic_templates("train", 0.2)
    held_out = gsm_symbolic_templates("held_out", 0.2)
    assert (len(train), len(held_out)) == (68, 17)
    assert not set(train) & set(held_out)


def test_a_larger_share_holds_out_the_same_templates_and_more():
    shares = [set(gsm_symbolic_templates("held_out", share)) for share in (0.01, 0.2, 0.5, 0.999)]
    assert [len(templates) for templates in shares] == [1, 17, 42, 84]
    assert all(small < large for small, large in itertools.pairwise(shares))


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_the_evaluation_asks_no_template_of_the_corpus(share):
    rows = [row for _, _, row in read_rows(gym(1500, seed=1, held_out_share=share))]
    asked = {problem["template"] for problem in held_out_problems("gsm_symbolic", 500, seed=1)}
    assert len(asked) == 17
    assert {row["template"] for row in rows} == set(gsm_symbolic_templates("train", share))
    assert not {row["template"] for row in rows} & asked


def test_every_solution_ends_in_its_answer():
    for row in curated(gym(400)):
        if isinstance(row, QuarantinedRow):
            assert row.reason == "duplicate"
            continue
        assert row.response.splitlines()[-1] == f"#### {row.answer}"
        assert row.response.count("####") == 1
        float(row.answer)
        assert row.original["template"] in gsm_symbolic_templates("train", 0.2)


def test_row_i_depends_on_the_seed_and_i_only():
    rows = list(read_rows(gym(30, seed=5)))
    assert list(read_rows(gym(10, seed=5))) == rows[:10]
    assert list(read_rows(gym(30, seed=5, max_rows=10))) == rows[:10]
    neighbours = {row["question"] for _, _, row in read_rows(gym(30, seed=6))}
    assert not neighbours & {row["question"] for _, _, row in rows}


def test_held_out_problems_are_the_same_for_the_same_seed():
    first = list(held_out_problems("gsm_symbolic", 20, seed=2))
    assert list(held_out_problems("gsm_symbolic", 10, seed=2)) == first[:10]
    assert set(first[0]) == {"doc_id", "problem", "answer", "solution", "family", "template"}
    assert first[3]["doc_id"] == "gsm_symbolic-2-3"


# import


def test_importing_loads_neither_torch_nor_the_data_libraries():
    code = (
        "import sys, resources.corpora, resources.control_texts, resources.sample_files\n"
        "heavy = {'torch', 'transformers', 'datasets', 'reasoning_gym', 'dagster', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
