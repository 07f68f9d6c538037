"""Asks whether a reading of the heads' attention measures reasoning, or only length.

    python -m bench.score_validity --model tiny
    python -m bench.score_validity --model smollm2 --corpus path/to/gsm8k/train.jsonl
    python -m bench.score_validity --tables bench/results/score_validity-tiny.json

Every reading is taken by every set of heads: those whose ablation costs most on reasoning probes
(`delta`), those that cost more there than on plain prose (`specific`), those that cost most on the
prose (`prose`), on the first tokens of the probes' responses (`first_tokens`) or on all tokens
after these (`later_tokens`), and all; and, for comparison, by random sets with as many heads of
each layer (`bench.random_head_sets`). Each is correlated with the prompt's length and, with length
held fixed, with the number of solution steps, the loss of the solution, and whether the model fails
the problem. Half of the problems are looked at, half confirm (`bench.reading_correlations`).

The embedded model answers every problem. A model that takes hours to answers so many that it is
known how often it fails: where it nearly always does, there is nothing to correlate with.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from bench.attention_readings import Floats, read_problems_by
from bench.measure import log, print_result, start_logging
from bench.models import MODELS, load_model, preset_settings
from bench.random_head_sets import (
    count_random_sets,
    largest_z,
    list_sets,
    overlap_of_random_sets,
    unique_sets,
)
from bench.reading_correlations import compare, confirm, format_tables
from circuitseer_assets.method.composition import count_steps
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.method.head_effects import (
    Journal,
    Laboratory,
    Measured,
    Progress,
    make_laboratory,
)
from circuitseer_assets.method.response_loss import response_losses
from circuitseer_assets.records import HeadId, Sample, TokenizedText
from circuitseer_assets.settings import (
    Columns,
    CorpusSettings,
    ExecutionSettings,
    FilesCorpus,
    HeadRankingSettings,
)
from resources.control_texts import read_control_texts
from resources.corpora import columns_of, read_rows
from resources.journal import FileJournal
from resources.language_model import LanguageModel

NUM_PROBES = {"tiny": 192, "smollm2": 12}
FRACTIONS = {"tiny": 0.125, "smollm2": 0.05}
NUM_FIRST_TOKENS = 8
MAX_ANSWERED = {"tiny": None, "smollm2": 128}
MAX_NEW_TOKENS = {"tiny": 96, "smollm2": 256}
MAX_BATCH_TOKENS = ExecutionSettings().max_batch_tokens


def main() -> None:
    """Measures one model and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--corpus", type=Path, help="JSONL in GSM8K's columns; the preset's if not")
    parser.add_argument("--problems", type=int, default=1200)
    parser.add_argument("--journal", type=Path, help="keeps ablations, to go on from when killed")
    parser.add_argument("--tables", type=Path, help="a result, to show as Markdown and not to make")
    arguments = parser.parse_args()
    if arguments.tables:
        print(format_tables(json.loads(arguments.tables.read_text())))
        return
    if not arguments.model:
        parser.error("name a model with --model")
    start_logging()
    started = time.perf_counter()
    journal = FileJournal(arguments.journal) if arguments.journal else None
    result = measure(arguments.model, arguments.corpus, arguments.problems, journal)
    print_result(result, started=started)


def measure(
    name: str, corpus: Path | None, num_problems: int, journal: Journal | None = None
) -> dict[str, Any]:
    """Returns every correlation, and which of them were confirmed.

    A `journal` has to be of the same model, corpus and probes.
    """
    model = load_model(name)
    samples = read_problems(name, corpus, num_problems + NUM_PROBES[name])
    probes, problems = samples[: NUM_PROBES[name]], samples[NUM_PROBES[name] :]
    problems = [problem for problem in problems if is_readable(model, problem)]
    sets, evidence = choose_head_sets(name, model, probes, journal)
    targets = describe_problems(model, problems)
    fails = find_failures(name, model, problems)
    if len(fails) == len(problems):
        targets["fails"] = fails
    # Two ways to choose may give one set: it is measured, and counted, once.
    names, membership = list_sets(unique_sets(sets), model)
    scores = read_problems_by(model, problems, membership)
    half = len(problems) // 2
    rows = [
        row
        for reading, values in scores.items()
        for row in compare(reading, values, names, targets, half)
    ]
    confirm(rows)
    return {
        "model": name,
        "num_problems": len(problems),
        "heads": {key: [str(head) for head in heads] for key, heads in sets.items()},
        **evidence,
        "num_random_sets": count_random_sets(names),
        "random_sets_overlap": overlap_of_random_sets(names, membership),
        "largest_z": {
            name: largest_z(sets[name], model.model.config.num_attention_heads)
            for name in count_random_sets(names)
        },
        "num_answered": len(fails),
        "fail_rate": float(fails.mean()),
        "num_candidates": sum(row["is_candidate"] for row in rows),
        "num_confirmed": sum(row["is_confirmed"] for row in rows),
        "rows": rows,
    }


# problems -----------------------------------------------------------------------------------------


def read_problems(name: str, corpus: Path | None, count: int) -> list[Sample]:
    """Returns so many problems with different prompts, probes first."""
    settings: CorpusSettings = preset_settings(name).corpus
    if corpus is not None:
        columns = Columns(prompt="question", response="answer")
        settings = FilesCorpus(source="files", paths=(str(corpus),), columns=columns)
    elif settings.source in ("word_problems", "reasoning_gym"):
        settings = settings.model_copy(update={"num_samples": 2 * count})
    found: dict[str, Sample] = {}
    for row in curate_rows(read_rows(settings), columns_of(settings)):
        if isinstance(row, Sample):
            found.setdefault(row.prompt_id, row)
        if len(found) == count:
            break
    return list(found.values())


def is_readable(model: LanguageModel, problem: Sample) -> bool:
    """Returns whether every reading has something to look at: a number, and a sentence before."""
    text = model.tokenize(problem.sample_id, problem.messages)
    return bool(text.numbers) and text.question_start != text.content[0]


def describe_problems(model: LanguageModel, problems: Sequence[Sample]) -> dict[str, Floats]:
    """Returns length, steps and loss by problem."""
    texts = [model.tokenize(s.sample_id, s.messages, s.response) for s in problems]
    losses = dict(response_losses(model.model, texts, max_batch_tokens=MAX_BATCH_TOKENS))
    return {
        "length": np.array([text.response_start for text in texts], float),
        "steps": np.array([count_steps(sample.response) for sample in problems], float),
        "loss": np.array([losses[text.sample_id].mean() for text in texts]),
    }


def find_failures(name: str, model: LanguageModel, problems: Sequence[Sample]) -> Floats:
    """Returns by problem whether the model fails it, of the first MAX_ANSWERED[name]."""
    asked = problems[: MAX_ANSWERED[name]]
    right = answer(model, asked, max_new_tokens=MAX_NEW_TOKENS[name])
    fails = np.array([not is_right for is_right in right], float)
    log.info("the model fails %.1f %%", 100 * fails.mean())
    return fails


def answer(
    model: LanguageModel, problems: Sequence[Sample], *, max_new_tokens: int
) -> Iterator[bool]:
    """Returns whether the model's greedy answer ends as the solution does.

    An answer without GSM8K's mark ends with its last number.
    """
    for first in range(0, len(problems), 64):
        batch = problems[first : first + 64]
        ids = [model.tokenize(s.sample_id, s.messages).input_ids for s in batch]
        longest, pad = max(map(len, ids)), model.tokenizer.pad_token_id
        generate: Any = model.model.generate
        tokens = generate(
            input_ids=torch.tensor([[pad] * (longest - len(row)) + list(row) for row in ids]),
            attention_mask=torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in ids]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
        for sample, row in zip(batch, tokens[:, longest:], strict=True):
            said = model.tokenizer.decode(row, skip_special_tokens=True)
            log.info("answered %s", sample.sample_id)
            yield _final(said) == _final(sample.response)


def _final(text: str) -> str | None:
    found = re.findall(r"####\s*(-?[\d.,]+)", text) or re.findall(r"-?\d[\d.,]*", text)
    return found[-1].replace(",", "").rstrip(".") if found else None


# heads --------------------------------------------------------------------------------------------


def choose_head_sets(
    name: str, model: LanguageModel, probes: Sequence[Sample], journal: Journal | None
) -> tuple[dict[str, list[HeadId]], dict[str, Any]]:
    """Returns the head sets, and how far they hang on what they were measured by."""
    texts = [model.tokenize(s.sample_id, s.messages, s.response) for s in probes]
    settings = preset_settings(name).probe_set.model_copy(update={"num_control": len(probes)})
    prose = [
        model.tokenize(s.sample_id, s.messages, s.response)
        for s in read_control_texts(settings)[: len(probes)]
    ]
    laboratory = make_laboratory(
        model.model,
        texts,
        HeadRankingSettings(),
        max_batch_tokens=MAX_BATCH_TOKENS,
        journal=journal,
    )
    on_probes, on_prose, on_first_tokens = (
        _measure(laboratory, of) for of in (texts, prose, [cut(text) for text in texts])
    )
    on_later_tokens = effects_on_later_tokens(
        on_probes.effects,
        on_first_tokens.effects,
        [len(text.input_ids) - text.response_start for text in texts],
    )
    k = max(1, round(FRACTIONS[name] * len(laboratory.heads)))

    def top(effects: Floats) -> list[HeadId]:
        return [laboratory.heads[i] for i in _top(effects, k)]

    delta, control = on_probes.effects.mean(1), on_prose.effects.mean(1)
    sets = {
        "delta": top(delta),
        "specific": top(delta / on_probes.clean_loss_nats - control / on_prose.clean_loss_nats),
        "prose": top(control),
        "first_tokens": top(on_first_tokens.effects.mean(1)),
        "later_tokens": top(on_later_tokens),
        "all": list(laboratory.heads),
    }
    chosen = set(sets["delta"])
    return sets, {
        "effects_correlation_with_prose": float(stats.spearmanr(delta, control).statistic),
        "share_of_delta_heads": {
            other: len(chosen & set(sets[other])) / k
            for other in ("specific", "prose", "first_tokens", "later_tokens")
        },
        "overlap_of_disjoint_probes": overlap_of_disjoint_probes(on_probes.effects, k),
    }


def cut(text: TokenizedText) -> TokenizedText:
    """Returns the text with the first tokens of its response alone, by a name of its own.

    A laboratory knows a text by its name, and would give the whole text's effects again.
    """
    return replace(
        text,
        sample_id=f"{text.sample_id}:first_tokens",
        input_ids=text.input_ids[: text.response_start + NUM_FIRST_TOKENS],
    )


def effects_on_later_tokens(on_all: Floats, on_first: Floats, num_tokens: Sequence[int]) -> Floats:
    """Returns each head's mean effect on what comes after the first tokens, in nats a token.

    A loss is a mean over tokens, and no later token changes that of an earlier one: the mean over
    all is that over the first and that over the later ones, weighted by how many they are.
    """
    num = np.array(num_tokens, float)
    is_longer = num > NUM_FIRST_TOKENS
    num_later = num[is_longer] - NUM_FIRST_TOKENS
    total = on_all[:, is_longer] * num[is_longer]
    later: Floats = (total - on_first[:, is_longer] * NUM_FIRST_TOKENS) / num_later
    return later.mean(axis=1)


def overlap_of_disjoint_probes(effects: Floats, k: int) -> dict[int, float]:
    """Returns by a number of probes which share of the top `k` heads two such halves agree on."""
    found = {}
    size = effects.shape[1] // 2
    while size >= 3:
        first, second = (effects[:, of].mean(1) for of in (slice(size), slice(size, 2 * size)))
        found[size] = len(set(_top(first, k)) & set(_top(second, k))) / k
        size //= 2
    return found


def _top(effects: Floats, k: int) -> list[int]:
    return sorted(np.argsort(-effects, kind="stable")[:k].tolist())


def _measure(laboratory: Laboratory, texts: Sequence[TokenizedText]) -> Measured:
    everyone = np.ones(len(laboratory.heads), dtype=bool)

    def report(done: int, total: int) -> None:
        if done % 500 < 5:
            log.info("ablations: %d of %d", done, total)

    return laboratory.measure(texts, everyone, Progress(report, len(everyone) * len(texts)))


if __name__ == "__main__":
    main()
