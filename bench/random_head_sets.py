"""Random sets with as many heads of each layer as a chosen set has.

Such a set may have heads in common with the chosen one, for without them a layer that is mostly
chosen would have none like it; it is never the chosen set, and no two are the same, in one half of
the problems or across halves: where there are fewer than 100 a half, all are taken.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from bench.attention_readings import Floats
from circuitseer_assets.records import HeadId
from resources.language_model import LanguageModel

NUM_RANDOM_SETS = 100
MIN_RANDOM_SETS = 10  # a layer that is nearly all chosen has no more
# Draws without a set that was not drawn before: then there are hardly any left.
MAX_REPEATS = 200
PARTS = ("look", "confirm")


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


def largest_z(heads: Sequence[HeadId], num_heads: int) -> float:
    """Returns how many standard deviations out the set would lie if it had each layer's highest.

    That is of a reading to which heads add, independent and normal: about the most that a set of so
    many of a layer's heads can differ from others of the same layer.
    """
    generator = np.random.default_rng(0)
    # What the highest, the second highest and so on are on the average.
    expected = np.sort(generator.normal(size=(100_000, num_heads)), axis=1)[:, ::-1].mean(0)
    counts = Counter(head.layer for head in heads).values()
    distance = sum(expected[:count].sum() for count in counts)
    # A sum of `count` of `num_heads` values without replacement; their variance is one.
    variance = sum(count * (1 - count / num_heads) for count in counts)
    return float(distance / np.sqrt(variance)) if variance else 0.0


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
