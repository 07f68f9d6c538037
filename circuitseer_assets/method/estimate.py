"""What a run would cost, from its settings and the shapes of what it reads, before anything is run.

Tokens are counted as the table `artifact_costs` counts them: one that passes through all layers is
one, through half of them half a token. Every figure that is assumed, not known, is said.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from circuitseer_assets.settings import Settings

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
_UTILISATION = 0.4
_BANDWIDTH_USED = 0.6
# Of the heads still in the race after each of its rounds; measured on SmolLM2.
_STILL_RACING = (1.0, 0.35, 0.2, 0.13, 0.1)
# Nothing above the deepest chosen head is run to score; that of SmolLM2 lies there.
_DEEPEST = 0.8
_PADDING = 1.06
_ADAM_BYTES = 8


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder with gated feed-forward layers, as its configuration names them."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool

    @property
    def num_layer_parameters(self) -> int:
        """The weights of all layers, without embeddings."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """All weights but the few of norms and biases."""
        tables = 1 if self.is_tied else 2
        return self.num_layer_parameters + tables * self.vocab_size * self.hidden_size

    def flops(self, num_tokens: float, context: float, *, with_logits: bool = True) -> float:
        """Returns the floating-point operations of a forward over tokens that see `context`."""
        weights = self.num_layer_parameters + with_logits * self.vocab_size * self.hidden_size
        looking = 2 * self.num_layers * self.num_heads * self.head_dim * context / 2
        return 2 * num_tokens * (weights + looking)

    def cache_bytes(self, num_tokens: float, num_bytes: int) -> float:
        """Returns the size of the keys and values of so many tokens."""
        return 2 * num_tokens * self.num_layers * self.num_kv_heads * self.head_dim * num_bytes


@dataclass(frozen=True, slots=True)
class CorpusShape:
    """How many rows a corpus has, and some rows' lengths in tokens, as (prompt, response)."""

    num_rows: int
    lengths: tuple[tuple[int, int], ...]
    bytes_a_token: float
    is_downloaded: bool = False

    @property
    def mean_prompt_tokens(self) -> float:
        """The mean length of a prompt."""
        return _mean([prompt for prompt, _ in self.lengths])


@dataclass(frozen=True, slots=True)
class BenchmarkShape:
    """How many problems a benchmark has, and how long one is in tokens."""

    num_problems: int
    prompt_tokens: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet: dense bfloat16 operations and bytes a second, bytes of memory."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What one stage takes; `memory_bytes` of one GPU, the hours of all that share it.

    `disk_bytes` stay, `transient_disk_bytes` are needed beside them while the stage is at work.
    """

    stage: str
    num_tokens: float
    flops: float
    memory_bytes: float
    gpu_hours: float
    disk_bytes: float = 0.0
    transient_disk_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run takes, stage by stage, on one kind of GPU; and all that was assumed."""

    gpu: Gpu
    model: ModelShape
    stages: tuple[StageEstimate, ...]
    assumptions: tuple[str, ...] = field(default=())

    @property
    def gpu_hours(self) -> float:
        """The hours of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        """The bytes that stay of all stages."""
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def peak_disk_bytes(self) -> float:
        """The bytes that are on the disk at most."""
        return self.disk_bytes + max(stage.transient_disk_bytes for stage in self.stages)


def estimate_run(
    settings: Settings,
    model: ModelShape,
    corpus: CorpusShape,
    benchmarks: Sequence[BenchmarkShape],
    gpu: Gpu,
) -> Estimate:
    """Returns what a whole run in an empty home takes."""
    dtype = settings.base_model.dtype
    num_bytes = BYTES_OF["bfloat16" if dtype == "auto" else dtype]
    pool = max(1, corpus.num_rows - settings.probe_set.num_ranking)
    pool -= min(pool - 1, settings.probe_set.num_confirmation)
    stages = (
        _reading(model, corpus),
        _ranking(settings, model, corpus, num_bytes, gpu),
        _scoring(settings, model, corpus, pool, num_bytes, gpu),
        _training(settings, model, corpus, pool, gpu),
        _answering(settings, model, benchmarks, num_bytes, gpu),
    )
    return Estimate(gpu, model, stages, _assumptions(settings))


def _reading(model: ModelShape, corpus: CorpusShape) -> StageEstimate:
    tokens = corpus.num_rows * _mean([prompt + response for prompt, response in corpus.lengths])
    text = tokens * corpus.bytes_a_token
    # Stored once more, compressed, each prompt and response as text and in its original row.
    disk = 0.7 * text + corpus.is_downloaded * 0.4 * text
    return StageEstimate("corpus", 0.0, 0.0, 0.0, 0.0, disk)


def _ranking(
    settings: Settings, model: ModelShape, corpus: CorpusShape, num_bytes: int, gpu: Gpu
) -> StageEstimate:
    probes, ranking = settings.probe_set, settings.head_ranking
    limit = probes.max_characters
    lengths = [sum(pair) for pair in corpus.lengths]
    short = [n for n in lengths if limit is None or n * corpus.bytes_a_token <= limit]
    mean = _mean(short or [min(lengths)])
    num_heads = model.num_layers * model.num_heads
    num_chosen = math.floor(ranking.fraction * num_heads + 0.5)
    # An ablation restarts at its head's layer: on average half of the layers and a half are run.
    restart = (model.num_layers + 1) / (2 * model.num_layers)
    ablations = _ablations(probes.num_ranking, ranking.first_round_probes, num_heads, num_chosen)
    if ranking.exhaustive:
        ablations = probes.num_ranking * num_heads
    ablations += (probes.num_confirmation + probes.num_control) * num_chosen
    whole = probes.num_ranking + probes.num_control
    whole += probes.num_confirmation * (2 + ranking.num_random_draws)
    tokens = (ablations * restart + whole) * mean
    # The last layer's output goes through the vocabulary at every ablation, wherever it starts.
    flops = model.flops(tokens, mean, with_logits=False)
    flops += 2 * (ablations + whole) * mean * model.vocab_size * model.hidden_size
    batch = settings.execution.max_batch_tokens
    cached = (settings.execution.max_cached_layers or model.num_layers) * mean
    memory = model.num_parameters * num_bytes + (cached + 6 * batch) * model.hidden_size * num_bytes
    memory += 2 * batch * model.intermediate_size * num_bytes + 3 * batch * model.vocab_size * 4
    hours = _compute_hours(flops, gpu)
    kept = {"local": 0, "hub": num_bytes, "gguf": 4}[settings.base_model.source]
    disk = kept * model.num_parameters
    return StageEstimate("head_ranking", tokens, flops, memory, hours, disk)


def _ablations(num_probes: int, first_round: int, num_heads: int, num_chosen: int) -> float:
    """Returns how many ablations the race makes: rounds of n, n, 2n, 4n ... probes."""
    total, done, size, number = 0.0, 0, first_round, 0
    while done < num_probes:
        size = min(size, num_probes - done)
        racing = _STILL_RACING[min(number, len(_STILL_RACING) - 1)] * num_heads
        total += size * max(num_chosen, racing)
        done, number = done + size, number + 1
        size = done
    return total


def _scoring(
    settings: Settings,
    model: ModelShape,
    corpus: CorpusShape,
    pool: int,
    num_bytes: int,
    gpu: Gpu,
) -> StageEstimate:
    scoring = settings.scoring
    limit = scoring.max_tokens or math.inf
    reads = [prompt + (scoring.span == "response") * answer for prompt, answer in corpus.lengths]
    if scoring.long_prompts == "truncate":
        read = [min(n, limit) for n in reads]
    else:
        read = [n if n <= limit else 0 for n in reads]
    mean = _mean(read)
    tokens = pool * mean * _DEEPEST * _PADDING
    flops = model.flops(tokens, mean, with_logits=False)
    batch = settings.execution.max_batch_tokens
    memory = model.num_parameters * num_bytes + 8 * batch * model.hidden_size * num_bytes
    memory += 2 * batch * model.intermediate_size * num_bytes
    return StageEstimate(
        "sample_scores", tokens, flops, memory, _compute_hours(flops, gpu), pool * 120.0
    )


def _training(
    settings: Settings, model: ModelShape, corpus: CorpusShape, pool: int, gpu: Gpu
) -> StageEstimate:
    training = settings.training
    lengths = [sum(pair) for pair in corpus.lengths]
    if training.long_rows == "truncate":
        kept = [min(n, training.max_length) for n in lengths]
    else:
        kept = [n for n in lengths if n <= training.max_length]
    mean, share = _mean(kept or [training.max_length]), len(kept) / len(lengths)
    rows = _num_drawn(settings, pool, _mean(lengths)) * share
    tokens = training.epochs * rows * mean * _PADDING
    if training.max_steps is not None:
        a_step = training.batch_size * training.gradient_accumulation_steps
        tokens = training.max_steps * a_step * mean * _PADDING
    # A backward pass costs two forwards, one where the weights are frozen; recomputing one more.
    passes = 1 + (1 if training.lora else 2) + training.gradient_checkpointing
    flops = passes * model.flops(tokens, mean)
    trained = _num_trained(settings, model)
    memory = _state_bytes(settings, model, trained)
    memory += _activation_bytes(settings, model, max(kept, default=training.max_length))
    forwards = tokens * (1 + training.gradient_checkpointing)
    return StageEstimate(
        "checkpoint",
        forwards,
        flops,
        memory,
        _compute_hours(flops, gpu),
        disk_bytes=4 * model.num_parameters,
        # Two trainer checkpoints with their optimiser, and the model before it is logged.
        transient_disk_bytes=2 * trained * (4 + _ADAM_BYTES) + 4 * model.num_parameters,
    )


def _num_drawn(settings: Settings, pool: int, mean_tokens: float) -> float:
    budget = settings.selection.budget
    if budget.samples is not None:
        return budget.samples
    if budget.tokens is not None:
        return budget.tokens / mean_tokens
    return (budget.fraction or 0.0) * pool


def _num_trained(settings: Settings, model: ModelShape) -> float:
    lora = settings.training.lora
    if lora is None:
        return model.num_parameters
    # Two thin matrices beside each linear layer: q, k, v, o, and the three of the feed-forward.
    width = model.head_dim * (3 * model.num_heads + 2 * model.num_kv_heads)
    ends = 2 * model.hidden_size * 2 + width + 3 * (model.hidden_size + model.intermediate_size)
    return lora.rank * model.num_layers * ends


def _state_bytes(settings: Settings, model: ModelShape, trained: float) -> float:
    """Returns the size of weights, gradients and moments on one GPU."""
    training, placement = settings.training, settings.execution.training
    frozen_bytes = 2 if training.lora and training.dtype == "bfloat16" else 4
    weights = model.num_parameters * (frozen_bytes if training.lora else 4)
    state = weights + trained * (4 * bool(training.lora) + 4 + _ADAM_BYTES)
    if placement.sharding == "fsdp":
        # While they are computed with, one layer and the vocabulary's tables are gathered whole.
        gathered = model.num_parameters - model.num_layer_parameters * (1 - 1 / model.num_layers)
        return state / placement.num_processes + 4 * gathered
    # Processes that exchange gradients hold them once more, in the buckets that are sent.
    return state + 4 * trained * (placement.num_processes > 1)


def _activation_bytes(settings: Settings, model: ModelShape, longest: float) -> float:
    training = settings.training
    num_bytes = BYTES_OF[training.dtype]
    # The batch is that of a step, which all processes share.
    tokens = training.batch_size / settings.execution.training.num_processes * longest
    inside = 10 * model.hidden_size + 3 * model.intermediate_size
    if training.gradient_checkpointing:
        kept = model.num_layers * model.hidden_size + inside
    else:
        kept = model.num_layers * inside
    return tokens * (kept * num_bytes + 2 * model.vocab_size * 4)


def _answering(
    settings: Settings,
    model: ModelShape,
    benchmarks: Sequence[BenchmarkShape],
    num_bytes: int,
    gpu: Gpu,
) -> StageEstimate:
    evaluation = settings.evaluation
    tokens = flops = seconds = memory = 0.0
    for benchmark in benchmarks:
        asked = min(benchmark.num_problems, evaluation.max_problems or benchmark.num_problems)
        answers = 2 * asked * evaluation.num_repeats  # by the base model and by the checkpoint
        a_answer = benchmark.prompt_tokens + evaluation.max_new_tokens
        batch = min(evaluation.batch_size, asked)
        tokens += answers * a_answer
        flops += model.flops(answers * a_answer, a_answer / 2)
        cache = model.cache_bytes(batch * a_answer, num_bytes)
        steps = answers / batch * evaluation.max_new_tokens
        # Every step reads all weights and, on average, half of the cache.
        read = steps * (model.num_parameters * num_bytes + cache / 2)
        seconds += read / (_BANDWIDTH_USED * gpu.bytes_per_s)
        memory = max(memory, model.num_parameters * num_bytes + cache)
    return StageEstimate("evaluation", tokens, flops, memory, seconds / 3600)


def _compute_hours(flops: float, gpu: Gpu) -> float:
    return flops / (_UTILISATION * gpu.flops_per_s) / 3600


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _assumptions(settings: Settings) -> tuple[str, ...]:
    said = [
        f"{_UTILISATION:.0%} of the GPU's operations and, for answers, {_BANDWIDTH_USED:.0%} of "
        f"its bandwidth are used",
        f"answers are as long as evaluation.max_new_tokens, {settings.evaluation.max_new_tokens}: "
        f"a batch waits for its longest",
        "no sample is removed by the decontamination, none repeats another's prompt",
        f"after the first round {_STILL_RACING[1]:.0%} of the heads are still in the race, and the "
        f"deepest that is chosen lies at {_DEEPEST:.0%} of the layers",
    ]
    if (num_processes := settings.execution.training.num_processes) > 1:
        said.append(f"training loses no time where {num_processes} GPUs share it")
    if settings.training.long_rows == "drop":
        said.append("samples longer than training.max_length are drawn and then left out")
    return tuple(said)


def estimate_as_json(estimate: Estimate) -> dict[str, Any]:
    """Returns the estimate as plain JSON values, with its sums."""
    return {
        **asdict(estimate),
        "num_parameters": estimate.model.num_parameters,
        "gpu_hours": estimate.gpu_hours,
        "disk_bytes": estimate.disk_bytes,
        "peak_disk_bytes": estimate.peak_disk_bytes,
    }


# for a terminal -----------------------------------------------------------------------------------

ESTIMATE_COLUMNS = ("stage", "tokens", "FLOPs", "memory a GPU", "GPU-hours", "disk", "at most")


def estimate_rows(estimate: Estimate) -> list[tuple[str, ...]]:
    """Returns the stages as rows of text, and a last one of their sums."""
    rows = [
        (
            stage.stage,
            f"{stage.num_tokens:,.0f}",
            f"{stage.flops:.2e}",
            f"{stage.memory_bytes / 1e9:,.1f} GB",
            f"{stage.gpu_hours:,.2f}",
            f"{stage.disk_bytes / 1e9:,.2f} GB",
            f"{(stage.disk_bytes + stage.transient_disk_bytes) / 1e9:,.2f} GB",
        )
        for stage in estimate.stages
    ]
    largest = max(stage.memory_bytes for stage in estimate.stages)
    total = (
        "all",
        f"{sum(stage.num_tokens for stage in estimate.stages):,.0f}",
        f"{sum(stage.flops for stage in estimate.stages):.2e}",
        f"{largest / 1e9:,.1f} GB",
        f"{estimate.gpu_hours:,.2f}",
        f"{estimate.disk_bytes / 1e9:,.2f} GB",
        f"{estimate.peak_disk_bytes / 1e9:,.2f} GB",
    )
    return [*rows, total]
