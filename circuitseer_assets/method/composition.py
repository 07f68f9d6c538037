"""Samples in, what they are made of out: their source, their difficulty, any column they came with.

Used to tell what a subset holds against its pool.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from circuitseer_assets.records import Sample

SOURCE, NUM_STEPS = "source", "num_steps"
_MARKED = "<<"  # GSM8K writes <<3*4=12>> where a solution calculates
_EQUATION = re.compile(r"\d[^\n;=]*=\s*\$?\d")
# A column with more values, or longer ones, does not sort samples into kinds.
_MAX_VALUES, _MAX_CHARACTERS = 40, 60


@dataclass(frozen=True, slots=True)
class Composition:
    """How often each value of a column occurs in the corpus and in the subset."""

    column: str
    corpus: Mapping[str, int]
    subset: Mapping[str, int]


def compare_composition(
    samples: Iterable[Sample], drawn: Collection[str], text_columns: Collection[str] = ()
) -> tuple[Composition, ...]:
    """Returns what the drawn samples are made of against all, by every column that has kinds.

    These are `source`, `num_steps` and the columns that the corpus came with, but for
    `text_columns`; each with 2 to 40 short values, and none that only repeats another.

    Args:
        samples: the corpus, read as a stream.
        drawn: the ids of the subset.
        text_columns: the columns of prompt, response and answer.
    """
    corpus: dict[str, Counter[str]] = {}
    subset: dict[str, Counter[str]] = {}
    dropped = set(text_columns)
    for sample in samples:
        for column in dict.fromkeys([SOURCE, NUM_STEPS, *sample.original]):
            if column in dropped:
                continue
            value = value_of(sample, column)
            counts = corpus.setdefault(column, Counter())
            counts[value] += 1
            if len(counts) > _MAX_VALUES or len(value) > _MAX_CHARACTERS:
                dropped.add(column)
            elif sample.sample_id in drawn:
                subset.setdefault(column, Counter())[value] += 1
    compositions: list[Composition] = []
    for column, counts in corpus.items():
        of_subset = subset.get(column, Counter())
        is_another_name = any((c.corpus, c.subset) == (counts, of_subset) for c in compositions)
        if column not in dropped and len(counts) > 1 and not is_another_name:
            compositions.append(Composition(column, counts, of_subset))
    return tuple(compositions)


def value_of(sample: Sample, column: str) -> str:
    """Returns a sample's value of a column of its corpus, as text.

    Two are known of every sample: `source`, where it came from, and `num_steps`, which is counted
    in the solution where the corpus has no such column.
    """
    if column in sample.original:
        return str(sample.original[column])
    if column == SOURCE:
        return sample.source
    if column == NUM_STEPS:
        return str(count_steps(sample.response))
    return str(None)


def count_steps(solution: str) -> int:
    """Returns the number of calculations that a solution writes out."""
    return solution.count(_MARKED) or len(_EQUATION.findall(solution))
