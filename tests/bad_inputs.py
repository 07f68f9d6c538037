"""Bad inputs of every kind, as (kind, what, how it is given, what has to be said of it).

What gives an input returns what was said: the message of a refusal, or a quarantined row's reason.
"""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.attention import ensure_supported
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.method.scorers import find_scorer
from circuitseer_assets.method.study_methods import find_method
from circuitseer_assets.method.subset import resolve_num_samples
from circuitseer_assets.method.weights import weigh_samples
from circuitseer_assets.records import HeadId, Message, QuarantinedRow, UnscoredSample
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    Benchmark,
    Budget,
    Columns,
    FilesCorpus,
    GgufModel,
    LocalModel,
    ScoringSettings,
    SelectionSettings,
    load_settings,
    parse_settings,
)
from resources import parquet_limits, row_files
from resources.artifacts import ArtifactStore
from resources.benchmarks import load_problems
from resources.corpora import read_rows
from resources.draw import draw_subset
from resources.language_model import LanguageModel, load_language_model
from resources.overrides import write_overrides
from resources.warehouse import Warehouse

Give = Callable[[Path], str]
TINY = PROJECT_ROOT / "models/tiny"
PAIR = Columns(prompt="question", response="answer")
GOOD_ROW = {"question": "Tom has 3 pears and buys 4. How many has he?", "answer": "7\n#### 7"}
GOOD_LINE = json.dumps(GOOD_ROW).encode() + b"\n"


class BadInput(NamedTuple):
    """One bad input, and a pattern of what has to be said of it."""

    kind: str
    what: str
    give: Give
    said: str


def refusal(act: Callable[[], Any]) -> str:
    """Returns the message that `act` is refused with; anything else it raises is a failure."""
    try:
        done = act()
    except CircuitSeerError as error:
        return str(error)
    raise AssertionError(f"it was taken, and gave {done!r:.200}")


# settings -----------------------------------------------------------------------------------------


def setting(path: str, value: Any) -> Give:
    """The tiny preset with one value changed."""

    def give(_: Path) -> str:
        values: Any = yaml.safe_load((PROJECT_ROOT / "presets/tiny.yaml").read_text())
        inner = values
        *parents, last = path.split(".")
        for name in parents:
            inner = inner[name]
        inner[last] = value
        return refusal(lambda: parse_settings(values, origin="circuitseer.yaml"))

    return give


def settings_file(content: bytes) -> Give:
    def give(folder: Path) -> str:
        path = folder / "circuitseer.yaml"
        path.write_bytes(content)
        return refusal(lambda: load_settings(path))

    return give


SETTINGS = [
    ("a budget of nothing", setting("selection.budget", {"samples": 0}), "greater than or equal"),
    (
        "a share above one",
        setting("selection.budget", {"fraction": 1.5}),
        "less than or equal to 1",
    ),
    (
        "a share that is no number",
        setting("selection.budget", {"fraction": float("nan")}),
        "fraction: .*got nan",
    ),
    ("an endless learning rate", setting("training.learning_rate", float("inf")), "training.learn"),
    ("two budgets", setting("selection.budget", {"samples": 5, "tokens": 9}), "exactly one"),
    ("a misspelt name", setting("corpus.num_sample", 3), "no setting has this name"),
    ("a number as text", setting("corpus.num_samples", "many"), "valid integer, got 'many'"),
    ("true for a number", setting("corpus.num_samples", True), "valid integer, got True"),
    ("a seed below 0", setting("selection.seed", -1), "selection.seed: .*got -1"),
    ("a seed of 40 digits", setting("selection.seed", 10**40), "selection.seed: .*less than"),
    ("a name with a path in it", setting("preset", "../../etc"), "preset: .*pattern"),
    ("a name with a zero byte", setting("preset", "a\0b"), "preset: .*pattern"),
    (
        "a branch for a commit",
        setting("base_model", {"source": "hub", "repo_id": "a/b", "revision": "main"}),
        "must be a commit of 40",
    ),
    ("an unknown source", setting("base_model.source", "pickle"), "'local', 'hub', 'gguf'"),
    (
        "a template without a problem",
        setting("base_model.prompt_template", "Q:"),
        "must contain {prompt}",
    ),
    (
        "an undeclared benchmark",
        setting("evaluation.tasks", ["gsm8k"]),
        "must be among decontamination",
    ),
    (
        "a study of one method",
        setting("study", {"methods": ["random"]}),
        "study.methods: .*at least 2",
    ),
    (
        "a shell variable that is none",
        setting("automation", {"failure_webhook_variable": "$(reboot)"}),
        "failure_webhook_variable",
    ),
    (
        "a password in an address",
        setting("execution", {"mlflow_tracking_uri": "https://me:password@mlflow"}),
        "mlflow_tracking_uri must hold no password .* set it in the environment",
    ),
    ("an empty file", settings_file(b""), "must hold a mapping of slices, got NoneType"),
    ("a list", settings_file(b"- a\n"), "must hold a mapping of slices, got list"),
    ("torn YAML", settings_file(b"a: [1,"), "must be a YAML file in UTF-8"),
    ("YAML in UTF-16", settings_file("preset: tiny".encode("utf-16")), "must be set; add it|UTF-8"),
    (
        "YAML that builds an object",
        settings_file(b"preset: !!python/object/apply:os.getcwd []\n"),
        "must be a YAML file",
    ),
    (
        "YAML that grows without end",
        settings_file(
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9))
                for c in range(ord("b"), ord("j"))
            )
        ),
        "repeats the part \\*a; write it out",
    ),
    ("a slice that is set twice", settings_file(b"preset: a\npreset: b\n"), "sets 'preset' twice"),
    ("a name that is a number", settings_file(b"1: 2\n"), "no setting has this name|must be set"),
]

# files and rows -----------------------------------------------------------------------------------


def corpus_file(name: str, content: bytes, columns: Columns = PAIR, **rest: Any) -> Give:
    """Reads a corpus of one file to its end."""

    def give(folder: Path) -> str:
        path = folder / name
        path.write_bytes(content)
        return corpus_of(path, columns, **rest)

    return give


def corpus_of(path: Path, columns: Columns = PAIR, **rest: Any) -> str:
    settings = FilesCorpus(source="files", paths=(str(path),), columns=columns, **rest)
    return refusal(lambda: list(curate_rows(read_rows(settings), columns)))


def shared_value(folder: Path) -> str:
    """A Parquet file of some kilobytes whose rows share one value of more than a row may have."""
    path = folder / "bomb.parquet"
    value = pa.array(["x" * (parquet_limits.MAX_ROW_BYTES + 1)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), value)
    table = pa.table({"question": column, "answer": ["1"] * 1000})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    return corpus_of(path)


def compressed_zeros(folder: Path) -> str:
    """A Parquet file of some megabytes that unpacks to more than a gigabyte."""
    path = folder / "zeros.parquet"
    rows = ["0" * 2**20 + str(i) for i in range(64)]
    schema = pa.schema([("question", pa.string()), ("answer", pa.string())])
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        # One row group: only what a group holds can come into memory together.
        writer.write_table(
            pa.table({"question": rows * 17, "answer": ["1"] * 1088}, schema=schema),
            row_group_size=1088,
        )
    return corpus_of(path)


def long_line(folder: Path) -> str:
    """A gzip file of some kilobytes with one line of more than a row may have."""
    path = folder / "long.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(GOOD_LINE)
        for _ in range(row_files.MAX_ROW_BYTES // 2**20 + 1):
            file.write(b"x" * 2**20)
    return corpus_of(path)


def link_outside(folder: Path) -> str:
    (folder / "corpus").mkdir()
    (folder / "secret.jsonl").write_bytes(GOOD_LINE)
    (folder / "corpus/link.jsonl").symlink_to(folder / "secret.jsonl")
    return corpus_of(folder / "corpus/*.jsonl")


def torn_parquet(folder: Path) -> str:
    path = folder / "torn.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD_ROW] * 5000), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[1000:3000] = bytes(2000)
    path.write_bytes(content)
    return corpus_of(path)


def unreadable_file(folder: Path) -> str:
    (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
    return corpus_of(folder / "loop.jsonl")


FILES = [
    ("a missing file", lambda folder: corpus_of(folder / "no.jsonl"), "must name files that exist"),
    ("a folder", lambda folder: corpus_of(folder), "must name files, got the folder"),
    ("a glob without a match", lambda folder: corpus_of(folder / "*.csv"), "matches none"),
    ("a link out of the corpus's folder", link_outside, "must match files that lie in .*a link to"),
    ("a link to itself", unreadable_file, "must be one that can be followed"),
    (
        "a path with a zero byte",
        lambda _: corpus_of(Path("a\0b.jsonl")),
        "must be one that can be followed",
    ),
    (
        "a path of 5,000 letters",
        lambda _: corpus_of(Path("a" * 5000)),
        "must be one that can be followed",
    ),
    (
        "a user that is not there",
        lambda _: corpus_of(Path("~no_such_user/a.jsonl")),
        "must be one that can be followed",
    ),
    ("a name without a format", corpus_file("a.txt", GOOD_LINE), "must be set where a file's name"),
    ("an empty file", corpus_file("a.jsonl", b""), "at least one usable row, got 0"),
    (
        "Latin-1",
        corpus_file("a.jsonl", GOOD_LINE + b'{"question": "caf\xe9"}\n'),
        "must be in UTF-8, got the byte 0xe9 on line 2",
    ),
    ("UTF-16", corpus_file("a.jsonl", json.dumps(GOOD_ROW).encode("utf-16")), "must be in UTF-8"),
    (
        "CSV named JSONL",
        corpus_file("a.jsonl", b"question,answer\n1,2\n"),
        "one JSON object a line",
    ),
    ("JSON that is one list", corpus_file("a.jsonl", b"[1, 2]\n"), "one JSON object a line"),
    ("100,000 open brackets", corpus_file("a.jsonl", b"[" * 100_000), "one JSON object a line"),
    (
        "a number of 5,000 digits",
        corpus_file("a.jsonl", b'{"question": ' + b"9" * 5000 + b"}"),
        "one JSON object a line",
    ),
    (
        "torn gzip",
        corpus_file("a.jsonl.gz", gzip.compress(GOOD_LINE * 9000)[:300]),
        "must be a readable file",
    ),
    ("a line without end, compressed", long_line, "rows of at most .* on line 2"),
    (
        "a CSV file with an open quote",
        corpus_file("a.csv", b'question,answer\n1,2\n"3,4\n'),
        "must be a CSV file",
    ),
    (
        "a CSV file with two columns of a name",
        corpus_file("a.csv", b"a,a\n1,2\n"),
        "distinct column names",
    ),
    ("no Parquet", corpus_file("a.parquet", b"PAR1 and no more"), "must be a Parquet file"),
    ("Parquet torn in the middle", torn_parquet, "must be a Parquet file"),
    ("Parquet whose rows share a huge value", shared_value, "rows of at most .* in row group 0"),
    ("Parquet that unpacks without end", compressed_zeros, "must unpack to at most"),
    (
        "a column that is not there",
        corpus_file("a.jsonl", GOOD_LINE, Columns(prompt="q", response="answer")),
        "must name a column of .*'q'; choose one of 'question', 'answer'",
    ),
]


def row(content: dict[str, Any], columns: Columns = PAIR) -> Give:
    """Reads a good row and then this one, and returns why it is quarantined."""

    def give(_: Path) -> str:
        good: dict[str, Any] = GOOD_ROW
        if columns.messages:
            turns = [("user", GOOD_ROW["question"]), ("assistant", GOOD_ROW["answer"])]
            good = {"chat": [{"role": role, "content": text} for role, text in turns]}
        read = list(curate_rows([("a", 0, good), ("a", 1, content)], columns))
        assert isinstance(read[1], QuarantinedRow), read[1]
        return f"quarantined, {read[1].reason}: {read[1].detail}"

    return give


CHAT = Columns(messages="chat")
ROWS = [
    ("no prompt", row({"answer": "1"}), "no_prompt: column 'question' is missing"),
    ("a blank prompt", row({"question": " \u3000\n", "answer": "1"}), "no_prompt: .*blank"),
    ("no response", row({"question": "1?", "answer": None}), "no_response"),
    ("a prompt that is a list", row({"question": ["1"], "answer": "1"}), "not_text: .*list"),
    ("a prompt of bytes", row({"question": b"1", "answer": "1"}), "not_text: .*bytes"),
    ("half a surrogate pair", row({"question": "\ud800?", "answer": "1"}), "not_text: .*surrogate"),
    (
        "half a pair in another column",
        row({"question": "1?", "answer": "1", "x": "\udfff"}),
        "not_text: .*surrogate",
    ),
    (
        "an infinite number",
        row({"question": "1?", "answer": "1", "x": float("inf")}),
        "JSON cannot say",
    ),
    ("a repeated problem", row(dict(GOOD_ROW)), "duplicate: repeats sample"),
    ("a chat that is no list", row({"chat": {"a": 1}}, CHAT), "bad_messages: .*must be a list"),
    (
        "a turn of an unknown role",
        row({"chat": [{"role": "root", "content": "x"}]}, CHAT),
        "bad_messages: .*role among",
    ),
    (
        "a chat without an answer",
        row({"chat": [{"role": "user", "content": "1?"}]}, CHAT),
        "no_response",
    ),
    ("a chat of text that is no JSON", row({"chat": "[{"}, CHAT), "bad_messages: .*no JSON"),
]

# models and prompts -------------------------------------------------------------------------------


def model(change: Callable[[Path], None]) -> Give:
    """Loads a changed copy of the embedded model, and tries it."""

    def give(folder: Path) -> str:
        copy = folder / "model"
        shutil.copytree(TINY, copy)
        change(copy)
        settings = LocalModel(source="local", path=str(copy))
        return refusal(lambda: ensure_supported(loaded(settings, folder).model))

    return give


def loaded(settings: Any, cache: Path) -> LanguageModel:
    return load_language_model(settings, cache=cache)


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return change


def change_weights(change_tensors: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change_tensors(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def put_nan(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.self_attn.v_proj.weight"][0, 0] = torch.nan


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def forget_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def write_template(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        forget_template(folder)
        (folder / "chat_template.jinja").write_text(text)

    return change


def chat_with(change: Callable[[Path], None]) -> Give:
    """Reads a problem with a changed copy of the embedded model."""

    def give(folder: Path) -> str:
        copy = folder / "model"
        shutil.copytree(TINY, copy)
        change(copy)
        reader = loaded(LocalModel(source="local", path=str(copy)), folder)
        return refusal(lambda: reader.tokenize("a", [Message("user", GOOD_ROW["question"])]))

    return give


def gguf(package: str | None, file: str) -> Give:
    return lambda folder: refusal(
        lambda: loaded(GgufModel(source="gguf", package=package, file=file), folder)
    )


MODELS = [
    (
        "no such folder",
        lambda folder: refusal(
            lambda: loaded(LocalModel(source="local", path=str(folder / "none")), folder)
        ),
        "must be a folder with a config.json",
    ),
    ("pickled weights", model(pickle_weights), "pickled weights can run code"),
    ("cut weights", model(cut_weights), "cannot be loaded \\(SafetensorError"),
    ("weights with NaN", model(change_weights(put_nan)), "layer 0 gives NaN or infinity"),
    (
        "a configuration that is no JSON",
        model(lambda f: (f / "config.json").write_text("{") and None),
        "config.json that is JSON",
    ),
    (
        "an unknown architecture",
        model(change_json("config.json", model_type="perceiver9")),
        "cannot be loaded",
    ),
    (
        "code of its own",
        model(change_json("config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})),
        "cannot be loaded",
    ),
    (
        "heads that do not divide",
        model(change_json("config.json", num_key_value_heads=3)),
        "cannot be loaded|key/value heads",
    ),
    ("a tokenizer without a template", model(forget_template), "must have a chat template"),
    (
        "a tokenizer that is torn",
        model(lambda f: (f / "tokenizer.json").write_text("{") and None),
        "cannot be loaded",
    ),
    ("a template that forgets the problem", chat_with(write_template("Hello!")), "template"),
    ("a template that is torn", chat_with(write_template("{% for m in messages %}")), "template"),
    (
        "a template that reaches for files",
        chat_with(write_template("{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}")),
        "template",
    ),
    ("no GGUF file", gguf(None, str(TINY / "config.json")), "must be a GGUF file, .* is not one"),
    (
        "a package that is not there",
        gguf("no_such_package", "a.gguf"),
        "must be an installed package",
    ),
    ("a package that is a path", gguf("../models", "a.gguf"), "must be an installed package"),
    (
        "a package that would be imported",
        gguf("antigravity.x", "a.gguf"),
        "must be an installed package",
    ),
    (
        "a file outside of its package",
        gguf("yaml", "../../../../../etc/passwd"),
        "must lie in the package",
    ),
    (
        "a device that is not there",
        lambda folder: refusal(
            lambda: loaded(LocalModel(source="local", path=str(TINY), device="abacus"), folder)
        ),
        "must be a device of this machine",
    ),
]


def prompt(text: str, flat: bool = False, **scoring: Any) -> Give:
    """Scores one prompt with the embedded model, and returns why it has no score."""

    def give(folder: Path) -> str:
        reader = loaded(LocalModel(source="local", path=str(TINY)), folder)
        if flat:
            for name, weight in reader.model.named_parameters():
                if "q_proj" in name:
                    weight.data.zero_()
        settings = ScoringSettings(**scoring)
        [result] = score_samples(
            reader.model,
            [reader.tokenize("a", [Message("user", text)])],
            heads=[HeadId(0, 0)],
            settings=settings,
            max_batch_tokens=4096,
        )
        if isinstance(result, UnscoredSample):
            return f"unscored, {result.reason}: {result.detail}"
        pool = pa.table({"score": [result.score]})
        weights = weigh_samples(pool, SelectionSettings(budget=Budget(samples=1)))["weight"]
        return refusal(
            lambda: resolve_num_samples(
                Budget(samples=1), 1, sum(weight.as_py() > 0 for weight in weights)
            )
        )

    return give


def candidates(weights: list[float]) -> Give:
    table = pa.table(
        {
            "sample_id": [f"s{i}" for i in range(len(weights))],
            "score": weights,
            "weight": weights,
            "num_tokens": [9] * len(weights),
            "num_prompt_tokens": [5] * len(weights),
        }
    )
    settings = SelectionSettings(budget=Budget(samples=1))
    return lambda _: refusal(lambda: draw_subset(table, settings))


def weigh(scores: list[float], **selection: Any) -> Give:
    settings = SelectionSettings(budget=Budget(samples=1), **selection)
    return lambda _: refusal(lambda: weigh_samples(pa.table({"score": scores}), settings))


PROMPTS = [
    ("one token", prompt("7", tokens="content"), "unscored, too_few_tokens: 1 usable"),
    ("no token", prompt("", tokens="content"), "unscored, too_few_tokens|template"),
    ("a million tokens", prompt("7" * 1_000_000), "unscored, too_long: 1000\\d{3} tokens"),
    (
        "attention without variance",
        prompt("Tom has 3 pears.", flat=True, queries="last"),
        "none of 1 has: all their scores are 0",
    ),
    (
        "a scorer that is not there",
        lambda _: refusal(lambda: find_scorer(ScoringSettings(scorer="magic"))),
        "scoring.scorer must be one of",
    ),
    ("scores below zero, to a power", weigh([-1.0]), "must be softmax for scores below 0"),
    ("a score that is no number", weigh([float("nan")]), "must be a finite number"),
    ("scores too large for the power", weigh([1e200], power=4.0), "must keep every weight finite"),
    ("no weight above zero", candidates([0.0, 0.0]), "none of 2 has: all their scores are 0"),
    ("a weight that is no number", candidates([float("nan")]), "must be a finite number"),
    ("a weight below zero", candidates([-1.0, 1.0]), "must be a finite number of at least 0"),
]

# names and stores ---------------------------------------------------------------------------------


def broken_warehouse(folder: Path) -> str:
    path = folder / "warehouse.duckdb"
    path.write_bytes(b"no database at all" * 1000)
    return refusal(lambda: Warehouse(path).artifacts())


def benchmark(**settings: Any) -> Give:
    return lambda folder: refusal(lambda: load_problems(Benchmark(**settings), folder=folder))


NAMES = [
    (
        "an artifact's id with a path in it",
        lambda folder: refusal(lambda: ArtifactStore(folder).folder("subset", "../../etc")),
        "artifact_id must be letters",
    ),
    (
        "a preset with a path in it",
        lambda _: refusal(lambda: write_overrides("../tiny", None, None)),
        "PRESET must be one of gsm8k",
    ),
    ("a task with a path in it", benchmark(task="../../etc/passwd"), "task must be one of"),
    (
        "a task's file that is not there",
        benchmark(task="own", yaml="no/such.yaml"),
        "must name a file",
    ),
    (
        "a benchmark's file that is not there",
        benchmark(task="gsm8k", path="no/such.jsonl"),
        "must name a file",
    ),
    (
        "an unknown method",
        lambda _: refusal(lambda: find_method("magic")),
        "study.methods must be among",
    ),
    ("a warehouse that is none", broken_warehouse, "must be a DuckDB file of this version"),
]

BAD_INPUTS = [
    BadInput(kind, *entry)
    for kind, entries in {
        "settings": SETTINGS,
        "file": FILES,
        "row": ROWS,
        "model": MODELS,
        "prompt": PROMPTS,
        "name": NAMES,
    }.items()
    for entry in entries
]
