"""Times scoring against `output_attentions=True` and against one plain forward; checks its numbers.

    python -m bench.scoring --model smollm2

All sides read the same prompts. The plain forward runs the whole body in scoring's own batches with
SDPA, without logits; `output_attentions=True` runs it with eager attention, text by text, and
reduces the same heads. Peak memory is taken in a fresh process for each side and length, above what
the loaded model needs, with an allocator that gives freed blocks back at once: otherwise it is that
of the heap's holes, which differ by half from run to run.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import log, median_ratio, print_result, start_logging, time_sides
from bench.models import MODELS, load_model, read_probes
from circuitseer_assets.method.attention import decoder_of
from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.records import HeadId, SampleScore, TokenizedText
from circuitseer_assets.settings import ExecutionSettings, ScoringSettings
from resources.language_model import LanguageModel

# What `bench.head_ranking` finds, pinned here so that this measurement does not depend on that one.
HEADS = {
    "smollm2": "1.0 7.2 10.8 11.3 14.5 16.0 16.1 17.2 17.6 18.8 19.5 19.8 20.8 23.0",
    "tiny": "0.1 0.2 0.5 0.6 0.7 1.5",
}
LENGTHS = (512, 2048)
MEMORY_LENGTHS = (512, 2048, 8192)
TOKENS_PER_SIDE = 8192  # the check of the model, once a call, is a pool's and not one text's
EAGER_REPEATS = 3
MAX_BATCH_TOKENS = ExecutionSettings().max_batch_tokens
SETTINGS = ScoringSettings()


def main() -> None:
    """Measures one model and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--repeats", type=int, default=11, help="timings beside the plain forward")
    arguments = parser.parse_args()
    start_logging()
    started = time.perf_counter()
    result = measure(arguments.model, arguments.repeats)
    print_result(result, started=started)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Returns throughputs, errors and peak memory of scoring with the model `name`."""
    model = load_model(name)
    heads = pinned_heads(name)
    beside_plain: dict[int, dict[str, list[float]]] = {}
    beside_eager: dict[int, dict[str, list[float]]] = {}
    errors = []
    for length in LENGTHS:
        texts = make_texts(name, model, length)
        log.info("%d tokens, %d texts", length, len(texts))
        run_plain(model, texts)  # warm up, and keep what both ways give
        ours, eager = score(model, heads, texts), score_eagerly(model, heads, texts)
        errors += [abs(a - b) / b for a, b in zip(ours, eager, strict=True)]

        def run_score(texts: Sequence[TokenizedText] = texts) -> None:
            score(model, heads, texts)

        def run_forward(texts: Sequence[TokenizedText] = texts) -> None:
            run_plain(model, texts)

        def run_eager(texts: Sequence[TokenizedText] = texts) -> None:
            score_eagerly(model, heads, texts)

        # The two are close: many pairs, of which a busy neighbour spoils but some.
        sides = {"score": run_score, "plain_forward": run_forward}
        beside_plain[length] = time_sides(sides, repeats=repeats)
        sides = {"score": run_score, "output_attentions": run_eager}
        beside_eager[length] = time_sides(sides, repeats=EAGER_REPEATS)
    against_plain = {
        length: median_ratio(times["plain_forward"], times["score"])
        for length, times in beside_plain.items()
    }
    against_eager = {
        length: median_ratio(times["output_attentions"], times["score"])
        for length, times in beside_eager.items()
    }
    memory = measure_memory(name)
    return {
        "model": name,
        "heads": [str(head) for head in heads],
        "speedup_vs_output_attentions_2048": against_eager[2048],
        "throughput_vs_plain_forward": min(against_plain.values()),
        "throughput_vs_plain_forward_by_length": against_plain,
        "speedup_vs_output_attentions_by_length": against_eager,
        "max_rel_error": max(errors),
        "peak_memory_vs_plain": max(
            memory["score"][length] / memory["plain_forward"][length] for length in LENGTHS
        ),
        "memory_growth_2048_to_8192": memory["score"][8192] / memory["score"][2048],
        "peak_memory_mb": memory,
        "seconds_beside_plain_forward": beside_plain,
        "seconds_beside_output_attentions": beside_eager,
    }


def pinned_heads(name: str) -> list[HeadId]:
    """Returns the heads whose attention is read."""
    return [HeadId(*map(int, head.split("."))) for head in HEADS[name].split()]


def make_texts(name: str, model: LanguageModel, length: int) -> list[TokenizedText]:
    """Returns prompts of exactly `length` tokens, real problems one after the other."""
    num_texts = max(1, TOKENS_PER_SIDE // length)
    stream = [token for text in read_probes(name, model, 200) for token in text.input_ids]
    stream *= 1 + num_texts * length // len(stream)
    return [
        TokenizedText(str(i), tuple(stream[i * length : (i + 1) * length]), (0, length), length)
        for i in range(num_texts)
    ]


def batches_of(texts: Sequence[TokenizedText]) -> list[torch.Tensor]:
    """Returns the batches that scoring forms of texts of one length, (B, T) each."""
    size = max(1, MAX_BATCH_TOKENS // len(texts[0].input_ids))
    rows = torch.tensor([text.input_ids for text in texts])
    return list(rows.split(size))


def score(
    model: LanguageModel, heads: Sequence[HeadId], texts: Sequence[TokenizedText]
) -> list[float]:
    """Returns the texts' scores by the project's own way, in their order."""
    results = score_samples(
        model.model,
        texts,
        heads=heads,
        settings=SETTINGS,
        max_batch_tokens=MAX_BATCH_TOKENS,
    )
    by_id = {row.sample_id: row.score for row in results if isinstance(row, SampleScore)}
    return [by_id[text.sample_id] for text in texts]


@torch.inference_mode()
def run_plain(model: LanguageModel, texts: Sequence[TokenizedText]) -> None:
    """Runs the whole body over the texts, with SDPA and without logits."""
    model.model.set_attn_implementation("sdpa")
    for ids in batches_of(texts):
        decoder_of(model.model)(input_ids=ids, use_cache=False)


@torch.inference_mode()
def score_eagerly(
    model: LanguageModel, heads: Sequence[HeadId], texts: Sequence[TokenizedText]
) -> list[float]:
    """Returns the texts' scores from the matrices that `output_attentions=True` gives."""
    model.model.set_attn_implementation("eager")
    scores = []
    for text in texts:  # one by one: L x H x T x T numbers are held for each
        ids = torch.tensor([text.input_ids])
        output = decoder_of(model.model)(input_ids=ids, use_cache=False, output_attentions=True)
        rows = [output.attentions[head.layer][0, head.head].double() for head in heads]
        received = torch.stack(rows).mean((0, 1))  # (T,)
        scores.append(float((received - 1 / len(received)).square().mean()))
    model.model.set_attn_implementation("sdpa")
    return scores


# memory -------------------------------------------------------------------------------------------


def measure_memory(name: str) -> dict[str, dict[int, float]]:
    """Returns each side's peak memory above the loaded model, in MB, by the texts' length."""
    memory: dict[str, dict[int, float]] = {"score": {}, "plain_forward": {}}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)  # bytes; glibc reads it at a start
    context = multiprocessing.get_context("spawn")
    for length in MEMORY_LENGTHS:
        for side, found in memory.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_for_memory, args=(name, side, length, sender))
            process.start()
            sender.close()
            try:
                found[length] = json.loads(receiver.recv())
            finally:
                process.join()
            log.info("%s, %d tokens: %.0f MB above the model", side, length, found[length])
    return memory


def _run_for_memory(name: str, side: str, length: int, sender: Any) -> None:
    model = load_model(name)
    heads, texts = pinned_heads(name), make_texts(name, model, length)
    texts = texts[:1]
    short = [TokenizedText("short", text.input_ids[:64], (0, 64), 64) for text in texts[:1]]
    run: Callable[[Sequence[TokenizedText]], object] = (
        (lambda texts: score(model, heads, texts))
        if side == "score"
        else (lambda texts: run_plain(model, texts))
    )
    run(short)  # threads, buffers and lazily loaded code are not what is asked for
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = _status_mb("VmRSS")
    run(texts)
    sender.send(json.dumps(_status_mb("VmHWM") - before))


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
