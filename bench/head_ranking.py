"""Times the head ranking against one whole forward a head, and checks its heads and its numbers.

    python -m bench.head_ranking --model smollm2
    python -m bench.head_ranking --model tiny

Timed is the search for the chosen heads on the ranking probes: the race with cached restarts,
whole, against every head on every probe with Hugging Face and with TransformerLens. Those two are
timed on a sample of (head, probe) pairs, spread evenly, and extrapolated by the number of pairs.
Afterwards the race's journal is completed to the exhaustive matrix of effects, which says what the
race missed, and in which the race is replayed in 1,000 orders of the probes.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from bench.baselines import AblatedLoss, hugging_face_loss, transformer_lens_loss
from bench.measure import LIBRARIES, log, median_ratio, print_result, start_logging, time_sides
from bench.models import MODELS, load_model, read_probes
from circuitseer_assets.method import ranking_statistics as statistics
from circuitseer_assets.method.head_effects import Laboratory, Progress, make_laboratory, race
from circuitseer_assets.method.ranking_statistics import BoolArray, FloatArray
from circuitseer_assets.records import HeadId, TokenizedText
from circuitseer_assets.settings import ExecutionSettings, HeadRankingSettings

NUM_PROBES = {"tiny": 64, "smollm2": 16}
FRACTIONS = {"tiny": 0.125, "smollm2": 0.05}
NUM_SAMPLED_HEADS = 12
# Enough whole forwards of either model to take seconds: a fraction of one says little.
PROBES_PER_SAMPLED_HEAD = {"tiny": 32, "smollm2": 4}
# A race of the tiny model takes seconds, and a shared machine's differ by a fifth.
REPEATS = {"tiny": 5, "smollm2": 3}
NUM_REPLAYS = 1000
MAX_BATCH_TOKENS = ExecutionSettings().max_batch_tokens


def main() -> None:
    """Measures one model and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--repeats", type=int, help="timings of each side; 5 or 3 by default")
    arguments = parser.parse_args()
    start_logging()
    started = time.perf_counter()
    result = measure(arguments.model, arguments.repeats or REPEATS[arguments.model])
    print_result(result, started=started, libraries=(*LIBRARIES, "transformer-lens"))


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Returns the speed-ups, the errors and the replays of the model `name`."""
    model = load_model(name)
    probes = read_probes(name, model, NUM_PROBES[name])
    settings = HeadRankingSettings(fraction=FRACTIONS[name])
    laboratory = make_laboratory(model.model, probes, settings, max_batch_tokens=MAX_BATCH_TOKENS)
    k = statistics.num_chosen_heads(settings.fraction, len(laboratory.heads))
    pairs = sample_pairs(laboratory.heads, probes, PROBES_PER_SAMPLED_HEAD[name])
    whole_forwards: dict[str, AblatedLoss] = {
        "hugging_face": hugging_face_loss(model),
        "transformer_lens": transformer_lens_loss(load_model(name), name),
    }
    log.info(
        "%s: %d heads, %d probes of %d to %d tokens",
        *(name, len(laboratory.heads), len(probes)),
        *(min(len(p.input_ids) for p in probes), max(len(p.input_ids) for p in probes)),
    )

    def run_race() -> None:
        laboratory.journal.clear()
        chosen.append(race_heads(laboratory, probes, k, settings))

    def run_pairs(loss: AblatedLoss) -> None:
        for head, probe in pairs:
            loss(probe, head)

    chosen: list[list[HeadId]] = []
    for loss in whole_forwards.values():  # warm up
        loss(probes[0], pairs[0][0])
    seconds = time_sides(
        {
            "race": run_race,
            **{side: lambda loss=loss: run_pairs(loss) for side, loss in whole_forwards.items()},
        },
        repeats=repeats,
    )
    measured_in_race = count_measured(laboratory)
    log.info("completing the exhaustive matrix")
    effects, clean = exhaustive_effects(laboratory, probes)
    top = [laboratory.heads[i] for i in statistics.top_heads(effects.mean(1), k)]
    scale = len(laboratory.heads) * len(probes) / len(pairs)
    return {
        "model": name,
        "speedup_vs_hf": median_ratio(seconds["hugging_face"], seconds["race"]) * scale,
        "speedup_vs_transformer_lens": median_ratio(seconds["transformer_lens"], seconds["race"])
        * scale,
        "top_missed": max(len(set(top) - set(heads)) for heads in chosen),
        "max_abs_error_nats": max(
            abs(loss(probe, head) - _loss_of(laboratory, effects, clean, probes, head, probe))
            for loss in whole_forwards.values()
            for head, probe in pairs
        ),
        **replay(effects, k, settings),
        "top_heads": [str(head) for head in sorted(top)],
        "heads": len(laboratory.heads),
        "chosen_heads": k,
        "probes": len(probes),
        "mean_tokens": float(np.mean([len(probe.input_ids) for probe in probes])),
        "ablations_in_race": measured_in_race,
        "ablations_exhaustive": len(laboratory.heads) * len(probes),
        "seconds_race": seconds["race"],
        "seconds_per_forward_hf": [s / len(pairs) for s in seconds["hugging_face"]],
        "seconds_per_forward_transformer_lens": [
            s / len(pairs) for s in seconds["transformer_lens"]
        ],
        "extrapolated": f"whole forwards timed on {len(pairs)} of "
        f"{len(laboratory.heads) * len(probes)} pairs of head and probe",
    }


def sample_pairs(
    heads: Sequence[HeadId], probes: Sequence[TokenizedText], probes_a_head: int
) -> list[tuple[HeadId, TokenizedText]]:
    """Returns pairs of heads spread over the layers and probes, every probe equally often."""
    chosen = [heads[i] for i in np.linspace(0, len(heads) - 1, NUM_SAMPLED_HEADS).astype(int)]
    stride = max(1, len(probes) // probes_a_head)
    return [
        (head, probes[(i + j * stride) % len(probes)])
        for i, head in enumerate(chosen)
        for j in range(probes_a_head)
    ]


def race_heads(
    laboratory: Laboratory,
    probes: Sequence[TokenizedText],
    k: int,
    settings: HeadRankingSettings,
) -> list[HeadId]:
    """Returns the k best heads by the race, as the ranking chooses them."""

    def report(done: int, total: int) -> None:
        if time.monotonic() - said[0] > 30:
            said[0] = time.monotonic()
            log.info("  %d of at most %d ablations", done, total)

    said = [time.monotonic()]
    total = len(laboratory.heads) * len(probes)
    measured = race(laboratory, probes, None, k, settings, Progress(report, total))
    whole = np.where(np.isnan(measured.effects).any(1), np.nan, measured.effects.mean(1))
    return [laboratory.heads[i] for i in statistics.top_heads(whole, k)]


def count_measured(laboratory: Laboratory) -> int:
    """Returns how many ablations the journal holds."""
    by_layer = (row for key, row in laboratory.journal.items() if not key.endswith(":clean"))
    return sum(int((~np.isnan(row)).sum()) for row in by_layer)


def exhaustive_effects(
    laboratory: Laboratory, probes: Sequence[TokenizedText]
) -> tuple[FloatArray, FloatArray]:
    """Returns all effects, (heads, probes), and the clean losses, (probes,)."""
    everyone: BoolArray = np.ones(len(laboratory.heads), dtype=np.bool_)
    measured = laboratory.measure(probes, everyone, Progress(lambda done, total: None, 0))
    return measured.effects, measured.clean_losses_nats


def _loss_of(
    laboratory: Laboratory,
    effects: FloatArray,
    clean: FloatArray,
    probes: Sequence[TokenizedText],
    head: HeadId,
    probe: TokenizedText,
) -> float:
    j = [text.sample_id for text in probes].index(probe.sample_id)
    return float(clean[j] + effects[laboratory.heads.index(head), j])


def replay(effects: FloatArray, k: int, settings: HeadRankingSettings) -> dict[str, Any]:
    """Returns how often the race finds the exhaustive set in random orders, and what it costs."""
    num_probes = effects.shape[1]
    truth = set(statistics.top_heads(effects.mean(1), k).tolist())
    random = np.random.default_rng(0)
    same, cost, missed = 0, 0, []
    for _ in range(NUM_REPLAYS):
        found, looked_at = statistics.replay_race(
            effects[:, random.permutation(num_probes)],
            k=k,
            first_round_probes=settings.first_round_probes,
            z=settings.interval_z,
        )
        cost += looked_at
        same += set(found.tolist()) == truth
        missed.append(len(truth - set(found.tolist())))
    interval = stats.binomtest(same, NUM_REPLAYS).proportion_ci(method="exact")
    return {
        "replay_same_set_rate": same / NUM_REPLAYS,
        "replay_same_set_rate_clopper_pearson_95": [interval.low, interval.high],
        "replay_share_of_ablations": cost / (NUM_REPLAYS * effects.size),
        "replay_most_missed": max(missed),
    }


if __name__ == "__main__":
    main()
