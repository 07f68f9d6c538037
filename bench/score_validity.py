"""Asks whether a reading of the heads' attention measures reasoning, or only length.

    python -m bench.score_validity --model tiny
    python -m bench.score_validity --model smollm2 --corpus path/to/gsm8k/train.jsonl
    python -m bench.score_validity --tables bench/results/score_validity-tiny.json

Every reading is taken by every set of heads: those whose ablation costs most on reasoning probes
(`delta`), those that cost more there than on plain prose (`specific`), those that cost most on the
prose (`prose`), on the first tokens of the probes' responses (`first_tokens`) or on all tokens
after these (`later_tokens`), and all; and, for comparison, by random sets with as many heads of
each layer. Such a set may have heads in common with the chosen one, for without them a layer that
is mostly chosen would have none like it; it is never the chosen set, and no two are the same, in
one half or across halves: where there are fewer than 100 a half, all are taken. Each is correlated
(Spearman) with the prompt's length and, with length held fixed, with the number of solution steps,
the loss of the solution, and whether the model fails the problem.

Half of the problems are looked at, half confirm: what lies 2 standard deviations outside the random
sets in the first half is a candidate, and is confirmed where it does so on the same side in the
second half, Holm-adjusted over the candidates.

The embedded model answers every problem. A model that takes hours to answers so many that it is
known how often it fails: where it nearly always does, there is nothing to correlate with.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from bench.attention_readings import Floats, read_problems_by
from bench.measure import log, print_result, start_logging
from bench.models import MODELS, load_model, preset_settings
from circuitseer_assets.method.composition import count_steps
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.method.head_effects import Laboratory, Measured, Progress, make_laboratory
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
from resources.language_model import LanguageModel

NUM_PROBES = {"tiny": 192, "smollm2": 12}
FRACTIONS = {"tiny": 0.125, "smollm2": 0.05}
NUM_FIRST_TOKENS = 8
NUM_RANDOM_SETS = 100
MIN_RANDOM_SETS = 10  # a layer that is nearly all chosen has no more
# Draws without a set that was not drawn before: then there are hardly any left.
MAX_REPEATS = 200
PARTS = ("look", "confirm")
LOOK_Z = 2.0
LEVEL = 0.05
MAX_ANSWERED = {"tiny": None, "smollm2": 128}
MAX_NEW_TOKENS = {"tiny": 96, "smollm2": 256}
MAX_BATCH_TOKENS = ExecutionSettings().max_batch_tokens


def main() -> None:
    """Measures one model and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--corpus", type=Path, help="JSONL in GSM8K's columns; the preset's if not")
    parser.add_argument("--problems", type=int, default=1200)
    parser.add_argument("--tables", type=Path, help="a result, to show as Markdown and not to make")
    arguments = parser.parse_args()
    if arguments.tables:
        print(format_tables(json.loads(arguments.tables.read_text())))
        return
    if not arguments.model:
        parser.error("name a model with --model")
    start_logging()
    started = time.perf_counter()
    result = measure(arguments.model, arguments.corpus, arguments.problems)
    print_result(result, started=started)


def measure(name: str, corpus: Path | None, num_problems: int) -> dict[str, Any]:
    """Returns every correlation, and which of them were confirmed."""
    model = load_model(name)
    samples = read_problems(name, corpus, num_problems + NUM_PROBES[name])
    probes, problems = samples[: NUM_PROBES[name]], samples[NUM_PROBES[name] :]
    problems = [problem for problem in problems if is_readable(model, problem)]
    sets, evidence = choose_head_sets(name, model, probes)
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
    name: str, model: LanguageModel, probes: Sequence[Sample]
) -> tuple[dict[str, list[HeadId]], dict[str, Any]]:
    """Returns the head sets, and how far they hang on what they were measured by."""
    texts = [model.tokenize(s.sample_id, s.messages, s.response) for s in probes]
    settings = preset_settings(name).probe_set.model_copy(update={"num_control": len(probes)})
    prose = [
        model.tokenize(s.sample_id, s.messages, s.response)
        for s in read_control_texts(settings)[: len(probes)]
    ]
    laboratory = make_laboratory(
        model.model, texts, HeadRankingSettings(), max_batch_tokens=MAX_BATCH_TOKENS
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


def unique_sets(sets: Mapping[str, Sequence[HeadId]]) -> dict[str, Sequence[HeadId]]:
    """Returns the sets without those that an earlier one equals."""
    found: dict[str, Sequence[HeadId]] = {}
    for name, heads in sets.items():
        if all(set(heads) != set(other) for other in found.values()):
            found[name] = heads
    return found


def list_sets(
    sets: Mapping[str, Sequence[HeadId]], model: LanguageModel
) -> tuple[list[str], Floats]:
    """Returns the sets' names, random ones included, and who is in them, (S, heads), rows sum 1.

    Each half of the problems has random sets of its own: `NAME:look0`, `NAME:confirm0` and so on.
    """
    config = model.model.config
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    names, rows = [], []
    for name, heads in sets.items():
        names.append(name)
        rows.append(_row(heads, num_layers, num_heads))
        if name == "all":
            continue
        drawn = draw_distinct_sets(heads, num_heads)
        for i, others in enumerate(drawn):
            names.append(f"{name}:{PARTS[i % 2]}{i // 2}")
            rows.append(_row(others, num_layers, num_heads))
    return names, np.stack(rows)


def draw_distinct_sets(heads: Sequence[HeadId], num_heads: int) -> list[Sequence[HeadId]]:
    """Returns different sets with as many heads of each layer, 2 x NUM_RANDOM_SETS if there are.

    The given set is none of them, though they may have heads in common with it.

    Raises:
        ValueError: so few are found that their spread would be a guess.
    """
    generator = np.random.default_rng(0)
    num_by_layer = Counter(head.layer for head in heads)
    found: dict[frozenset[HeadId], Sequence[HeadId]] = {}
    repeats = 0
    while len(found) < 2 * NUM_RANDOM_SETS and repeats < MAX_REPEATS:
        drawn = [
            HeadId(layer, int(head))
            for layer, count in num_by_layer.items()
            for head in generator.choice(num_heads, size=count, replace=False)
        ]
        is_known = frozenset(drawn) in found or frozenset(drawn) == frozenset(heads)
        repeats = repeats + 1 if is_known else 0
        if not is_known:
            found[frozenset(drawn)] = drawn
    if len(found) < 2 * MIN_RANDOM_SETS:
        raise ValueError(
            f"{len(heads)} heads must leave {2 * MIN_RANDOM_SETS} other sets with as many heads of "
            f"each layer, they leave {len(found)}; rank a smaller share of the heads"
        )
    return list(found.values())


def count_random_sets(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns by set how many random sets each half has."""
    return {
        name: {part: sum(other.startswith(f"{name}:{part}") for other in names) for part in PARTS}
        for name in names
        if ":" not in name and name != "all"
    }


def overlap_of_random_sets(names: Sequence[str], membership: Floats) -> dict[str, float]:
    """Returns by set the mean Jaccard overlap of its random sets with each other."""
    found = {}
    for name in (name for name in names if ":" not in name and name != "all"):
        like = [i for i, other in enumerate(names) if other.startswith(f"{name}:")]
        members = membership[like] > 0
        shared = (members[:, None] & members[None]).sum(-1)
        either = (members[:, None] | members[None]).sum(-1)
        of_pairs = (shared / either)[np.triu_indices(len(like), 1)]
        found[name] = float(of_pairs.mean())
    return found


def _row(heads: Sequence[HeadId], num_layers: int, num_heads: int) -> Floats:
    row = np.zeros(num_layers * num_heads)
    row[[head.layer * num_heads + head.head for head in heads]] = 1 / len(heads)
    return row


# correlations -------------------------------------------------------------------------------------


def compare(
    reading: str,
    scores: Floats,
    names: Sequence[str],
    targets: Mapping[str, Floats],
    half: int,
) -> Iterator[dict[str, Any]]:
    """Returns a row a set and target: correlations on both halves, and where random sets lie."""
    halves = dict(zip(PARTS, (slice(0, half), slice(half, None)), strict=True))
    length = targets["length"]
    for target, wanted in targets.items():
        found = {
            part: np.array(
                [
                    partial_spearman(
                        row[of], wanted[of], None if target == "length" else length[of]
                    )
                    for row in scores
                ]
            )
            for part, of in halves.items()
        }
        for i, name in enumerate(names):
            if ":" in name:
                continue
            row: dict[str, Any] = {"reading": reading, "heads": name, "target": target}
            for part, values in found.items():
                row[part] = float(values[i])
                like = [j for j, other in enumerate(names) if other.startswith(f"{name}:{part}")]
                if like:
                    row[f"random_{part}"] = float(values[like].mean())
                    row[f"random_sd_{part}"] = float(values[like].std(ddof=1))
                    row[f"z_{part}"] = (row[part] - row[f"random_{part}"]) / max(
                        row[f"random_sd_{part}"], 1e-12
                    )
                    row[f"num_random_{part}"] = len(like)
            yield row


def partial_spearman(values: Floats, wanted: Floats, fixed: Floats | None) -> float:
    """Returns Spearman's correlation without what the ranks of `fixed`, and their squares, say."""
    ranks = [stats.rankdata(values), stats.rankdata(wanted)]
    if fixed is not None:
        of_fixed = stats.zscore(stats.rankdata(fixed))
        design = np.stack([np.ones_like(of_fixed), of_fixed, of_fixed**2], axis=1)
        ranks = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks]
    if min(np.ptp(r) for r in ranks) < 1e-9:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def confirm(rows: Sequence[dict[str, Any]]) -> None:
    """Says of every row whether it is a candidate by the first half, confirmed by the second."""
    for row in rows:
        row["is_candidate"] = row["is_confirmed"] = False
    candidates = [
        row
        for row in rows
        # The set of all heads has no random sets like it to lie outside of.
        if row["target"] != "length" and row["heads"] != "all" and abs(row["z_look"]) >= LOOK_Z
    ]
    p_values = [_p_of_one_more(row) for row in candidates]
    order = np.argsort(p_values, kind="stable")
    still = True
    for rank, i in enumerate(order):
        still = still and p_values[i] * (len(order) - rank) <= LEVEL
        candidates[i].update(is_candidate=True, p_confirm=p_values[i], is_confirmed=bool(still))


def _p_of_one_more(row: Mapping[str, Any]) -> float:
    """Returns the one-sided p-value that the chosen set is one more draw like the random ones.

    Their mean and their spread are both estimates, from as many sets as there were.
    """
    number = row["num_random_confirm"]
    z = row["z_confirm"] * np.sign(row["z_look"]) / np.sqrt(1 + 1 / number)
    return float(stats.t.sf(z, df=number - 1))


# tables -------------------------------------------------------------------------------------------


def format_tables(result: Mapping[str, Any]) -> str:
    """Returns a Markdown table a set of heads: readings down, targets across.

    A cell has the correlation in both halves and, but for all heads, how many standard deviations
    it lies from those of the random sets; confirmed ones are bold.
    """
    rows = result["rows"]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = []
    for heads in dict.fromkeys(row["heads"] for row in rows):
        lines += [f"{SETS[heads]}:", "", "| reading | " + " | ".join(targets) + " |"]
        lines.append("|---|" + "---|" * len(targets))
        for reading in dict.fromkeys(row["reading"] for row in rows):
            found = {
                row["target"]: row
                for row in rows
                if (row["reading"], row["heads"]) == (reading, heads)
            }
            cells = [_format_cell(found[target]) for target in targets]
            lines.append(f"| `{reading}` | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


SETS = {
    "delta": "Heads that cost most on the probes",
    "specific": "Heads that cost more on the probes than on prose",
    "prose": "Heads that cost most on prose",
    "first_tokens": "Heads that cost most on the first tokens of the probes' responses",
    "later_tokens": "Heads that cost most on the later tokens of the probes' responses",
    "all": "All heads",
}


def _format_cell(row: Mapping[str, Any]) -> str:
    text = f"{row['look']:+.2f}, {row['confirm']:+.2f}"
    if "z_look" in row:
        text += f" (z {row['z_look']:+.1f}, {row['z_confirm']:+.1f})"
    return f"**{text}**" if row["is_confirmed"] else text


if __name__ == "__main__":
    main()
