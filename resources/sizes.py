"""How large the models, corpora and benchmarks are that settings name; nothing is downloaded.

What lies on this machine is looked at. What lies on the hub is known by a table here, from its own
page, or told by the user.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from circuitseer_assets.errors import ModelError, SettingsError
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.method.estimate import BenchmarkShape, CorpusShape, Gpu, ModelShape
from circuitseer_assets.records import Sample
from circuitseer_assets.settings import (
    BaseModelSettings,
    Benchmark,
    GgufModel,
    HubCorpus,
    HubModel,
    Settings,
    resolve_path,
)
from resources.corpora import columns_of, read_rows
from resources.model_files import find_gguf_file, find_model_folder, read_config
from resources.row_files import format_of, read_file

GPUS = {
    gpu.name: gpu
    for gpu in (
        # Dense bfloat16, from the makers' data sheets.
        Gpu("H200", 989e12, 4.8e12, 141e9),
        Gpu("H100", 989e12, 3.35e12, 80e9),
        Gpu("A100-80GB", 312e12, 2.04e12, 80e9),
        Gpu("L40S", 362e12, 0.864e12, 48e9),
        Gpu("RTX-4090", 165e12, 1.01e12, 24e9),
        Gpu("MI300X", 1307e12, 5.3e12, 192e9),
    )
}
# From each model's config.json.
_HUB_MODELS = {
    "Qwen/Qwen2.5-Math-7B": ModelShape(28, 3584, 28, 4, 128, 18944, 152064, is_tied=False),
    "Qwen/Qwen2.5-Math-1.5B": ModelShape(28, 1536, 12, 2, 128, 8960, 151936, is_tied=True),
    "Qwen/Qwen2.5-0.5B": ModelShape(24, 896, 14, 2, 64, 4864, 151936, is_tied=True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(30, 576, 9, 3, 64, 1536, 49152, is_tied=True),
}
_TASK_PROBLEMS = {
    "gsm8k": 1319,
    "svamp": 300,
    "math500": 500,
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "minerva_math": 272,
    "olympiadbench": 674,
    "gsm_symbolic": 300,
    "word_problems": 300,
}
_PROBLEM_TOKENS = 110
# English mathematics by a byte-pair tokenizer, and what a chat template adds to a problem.
_CHARACTERS_A_TOKEN = 3.0
_TEMPLATE_TOKENS = 25
_LOOKED_AT_ROWS = 2000


@dataclass(frozen=True, slots=True)
class HubSize:
    """How large a data set on the hub is, and how long its rows are in tokens.

    `spread` is the standard deviation of the logarithm of a response's length.
    """

    num_rows: int
    prompt_tokens: float
    response_tokens: float
    spread: float = 0.7


# The card says 94 thousand problems in the split `default`. Lengths from the card of
# 96kevinli29/SFT-Math-45k, drawn from it: median 12,980 characters, ninth decile 32,888.
_HUB_CORPORA = {"open-r1/OpenR1-Math-220k": HubSize(94_000, 110, 5_600, 0.73)}


def model_shape(settings: BaseModelSettings) -> ModelShape:
    """Returns the base model's sizes, from its configuration where that is at hand.

    Raises:
        ModelError: it is on the hub and not among those known here, or its configuration lacks a
            size.
    """
    if isinstance(settings, HubModel):
        known = _HUB_MODELS.get(settings.repo_id)
        if known is None:
            raise ModelError(
                f"base_model.repo_id must be one of {', '.join(_HUB_MODELS)} for an estimate, got "
                f"{settings.repo_id}; give the sizes with --config path/to/its/config.json"
            )
        return known
    if isinstance(settings, GgufModel):
        return _gguf_shape(find_gguf_file(settings))
    return shape_of_config(read_config(find_model_folder(settings)))


def shape_of_config(config: dict[str, Any]) -> ModelShape:
    """Returns the sizes that a model's config.json names.

    Raises:
        ModelError: one is missing.
    """
    config = config.get("text_config", config)
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return ModelShape(
            num_layers=config["num_hidden_layers"],
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            is_tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as missing:
        raise ModelError(
            f"a model's config.json must name {missing.args[0]} for an estimate, and does not; "
            f"give another with --config"
        ) from missing


def _gguf_shape(path: Path) -> ModelShape:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    named = reader.fields["general.architecture"].contents()

    def size(name: str, *, otherwise: int | None = None) -> int:
        found = reader.fields.get(f"{named}.{name}")
        if found is None:
            if otherwise is None:
                raise ModelError(f"the GGUF file {path} must name {named}.{name}, and does not")
            return otherwise
        return int(found.contents())

    heads, hidden = size("attention.head_count"), size("embedding_length")
    tensors = {tensor.name for tensor in reader.tensors}
    return ModelShape(
        num_layers=size("block_count"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=size("attention.head_count_kv", otherwise=heads),
        head_dim=size("attention.key_length", otherwise=hidden // heads),
        intermediate_size=size("feed_forward_length"),
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        is_tied="output.weight" not in tensors,
    )


def corpus_shape(settings: Settings, told: HubSize | None = None) -> CorpusShape:
    """Returns the corpus's size, of a local or generated one from its first rows.

    Args:
        settings: whose corpus.
        told: what the user says of it; of a corpus on the hub that is not known here it has to.

    Raises:
        CorpusError: a file cannot be read.
        SettingsError: the corpus is on the hub, not known here, and nothing was told.
    """
    corpus = settings.corpus
    if told is None and isinstance(corpus, HubCorpus):
        told = _HUB_CORPORA.get(corpus.repo_id)
        if told is None:
            raise SettingsError(
                f"corpus.repo_id must be one of {', '.join(_HUB_CORPORA)} for an estimate, got "
                f"{corpus.repo_id}; tell its size with --rows, --prompt-tokens, --response-tokens"
            )
    if told is not None:
        return _shape_of_told(told, corpus.max_rows, is_downloaded=isinstance(corpus, HubCorpus))
    count = _token_counter(settings.base_model)
    samples = _samples(settings)
    first = list(itertools.islice(samples, _LOOKED_AT_ROWS))
    num_rows = len(first) + sum(1 for _ in samples)
    lengths = [(count(s.prompt) + _overhead(settings), count(s.response)) for s in first]
    characters = sum(len(s.prompt) + len(s.response) for s in first)
    tokens = sum(map(sum, lengths)) - _overhead(settings) * len(first)
    return CorpusShape(num_rows, tuple(lengths), characters / max(1, tokens))


def _samples(settings: Settings) -> Iterator[Sample]:
    rows = curate_rows(read_rows(settings.corpus), columns_of(settings.corpus))
    return (row for row in rows if isinstance(row, Sample))


def _shape_of_told(told: HubSize, max_rows: int | None, *, is_downloaded: bool) -> CorpusShape:
    # Quantiles of a log-normal distribution with the mean that was told.
    middle = math.log(told.response_tokens) - told.spread**2 / 2
    logarithm = NormalDist(middle, told.spread)
    quantiles = [logarithm.inv_cdf((i + 0.5) / 200) for i in range(200)]
    lengths = tuple((round(told.prompt_tokens), round(math.exp(q))) for q in quantiles)
    num_rows = min(told.num_rows, max_rows or told.num_rows)
    return CorpusShape(num_rows, lengths, _CHARACTERS_A_TOKEN, is_downloaded=is_downloaded)


def _token_counter(settings: BaseModelSettings) -> Callable[[str], int]:
    if settings.source == "local":
        file = find_model_folder(settings) / "tokenizer.json"
        if file.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
            return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    return lambda text: math.ceil(len(text) / _CHARACTERS_A_TOKEN)


def _overhead(settings: Settings) -> int:
    return _TEMPLATE_TOKENS if settings.base_model.source != "local" else 2


def benchmark_shapes(settings: Settings) -> list[BenchmarkShape]:
    """Returns the size of every benchmark that is evaluated.

    Raises:
        SettingsError: how many problems a benchmark has is neither known nor set.
    """
    tokens = _PROBLEM_TOKENS + _overhead(settings)
    benchmarks = [settings.decontamination.benchmark(task) for task in settings.evaluation.tasks]
    return [BenchmarkShape(_count_problems(benchmark), tokens) for benchmark in benchmarks]


def _count_problems(benchmark: Benchmark) -> int:
    if benchmark.path is not None:
        path = resolve_path(benchmark.path)
        return sum(1 for _ in read_file(path, format_of(path, parameter="path")))
    number = benchmark.num_problems or _TASK_PROBLEMS.get(benchmark.task)
    if number is None:
        raise SettingsError(
            f"the benchmark {benchmark.task} must name a file or num_problems for an estimate, got "
            f"neither; set path or num_problems in decontamination.benchmarks"
        )
    return number


def find_gpu(name: str) -> Gpu:
    """Returns the GPU of this name.

    Raises:
        SettingsError: there is none.
    """
    if name not in GPUS:
        raise SettingsError(f"--gpu must be one of {', '.join(GPUS)}, got {name!r}; correct it")
    return GPUS[name]
