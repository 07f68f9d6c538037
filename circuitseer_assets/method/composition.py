"""Samples in, what they are made of out: their source, their difficulty, any column they came with.

Used to tell what a subset holds against its pool.
"""

import re

from circuitseer_assets.records import Sample

SOURCE, NUM_STEPS = "source", "num_steps"
_MARKED = "<<"  # GSM8K writes <<3*4=12>> where a solution calculates
_EQUATION = re.compile(r"\d[^\n;=]*=\s*\$?\d")


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
