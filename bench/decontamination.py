"""Measures what decontamination removes of a pool that is clean, and what it catches of copies.

    python -m bench.decontamination
    python -m bench.decontamination --pool train.jsonl --benchmark test.jsonl --column question

Without files the pool and the problems are those of the study: generated, of the same families and
of other templates. Copies are the benchmark's own problems with one to four words changed, numbers
never, in those where that is at most three words in ten; and, no word changed, with every whole
number written otherwise: below a hundred in words, thousands with commas, or as LaTeX.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import log, print_result, start_logging
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.decontamination import find_contaminated
from circuitseer_assets.method.problem_text import normalise_problem
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import Problem

NUM_CHANGED = (1, 2, 3, 4)
MAX_CHANGED_SHARE = 0.3
NEW_WORDS = ("zorp", "blicks", "quam")
WHOLE_NUMBERS = re.compile(r"(?<![\w.,/:$-])\d{1,12}(?![\w/:%-]|[.,]\d)")
NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""


def main() -> None:
    """Measures one pool against one benchmark and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, help="JSONL; generated problems if left out")
    parser.add_argument("--benchmark", type=Path, help="JSONL; held-out problems if left out")
    parser.add_argument("--column", action="append", help="what holds the text; several are joined")
    arguments = parser.parse_args()
    if (arguments.pool is None) != (arguments.benchmark is None):
        parser.error("name both --pool and --benchmark, or neither")
    start_logging()
    started = time.perf_counter()
    columns = arguments.column or ["question"]
    if arguments.pool:
        pool, benchmark = (
            read_texts(path, columns) for path in (arguments.pool, arguments.benchmark)
        )
    else:
        pool = [p.prompt for p in generate_problems(4000, seed=7, split="train")]
        benchmark = [p.prompt for p in generate_problems(1000, seed=0, split="held_out")]
    print_result(measure(pool, benchmark), started=started)


def read_texts(path: Path, columns: Sequence[str]) -> list[str]:
    """Returns the texts of a JSONL file: the columns that a row has, joined by a blank."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [" ".join(row[column] for column in columns if column in row) for row in rows]


def measure(pool: Sequence[str], benchmark: Sequence[str]) -> dict[str, Any]:
    """Returns how much of the pool is removed, by which rule, and the share of copies caught."""
    problems = [Problem("benchmark", str(i), text) for i, text in enumerate(benchmark)]
    removed = rules_of(pool, problems)
    log.info("%d of %d removed", len(removed), len(pool))
    caught = {}
    for number in NUM_CHANGED:
        generator = random.Random(number)
        copies = [change_words(text, number, generator) for text in benchmark]
        planted = {copy for copy in copies if copy is not None}
        caught[number] = len(rules_of(planted, problems)) / len(planted)
        log.info("%d words changed: %.4f caught", number, caught[number])
    caught_format = {
        name: caught_share_written(write, benchmark, problems)
        for name, write in NUMBER_FORMATS.items()
    }
    return {
        "num_pool": len(pool),
        "num_problems": len(problems),
        "num_removed": len(removed),
        "removed_share": len(removed) / len(pool),
        "removed_by_rule": dict(Counter(removed.values())),
        "caught_share_by_num_changed_words": caught,
        "min_caught_share": min(caught.values()),
        "caught_share_by_number_format": caught_format,
        "caught_share_other_number_format": min(
            (share for share in caught_format.values() if share is not None), default=None
        ),
    }


def rules_of(texts: Iterable[str], problems: Sequence[Problem]) -> dict[str, str]:
    """Returns the first rule that finds a text, by the sample it is, of those that are found."""
    samples = (
        sample_from_texts(text, "", source="bench", position=i, original={})
        for i, text in enumerate(texts)
    )
    found: dict[str, str] = {}
    for match in find_contaminated(samples, problems):
        found.setdefault(match.sample_id, match.rule)
    return found


def change_words(text: str, number: int, generator: random.Random) -> str | None:
    """Returns the text with so many words changed, None where it is too short for so many."""
    words = text.split()
    changeable = [i for i, word in enumerate(words) if normalise_problem(word).isalpha()]
    if number > min(MAX_CHANGED_SHARE * len(words), len(changeable)):
        return None
    for i in generator.sample(changeable, number):
        words[i] = generator.choice(NEW_WORDS)
    return " ".join(words)


def in_words(number: int) -> str:
    """Returns a number below a hundred in words, a larger one in digits."""
    words = NUMBER_WORDS.split()
    if number < 20:
        return words[number]
    if number >= 100:
        return str(number)
    unit = f"-{words[number % 10]}" if number % 10 else ""
    return words[number // 10 + 18] + unit


NUMBER_FORMATS: Mapping[str, Callable[[int], str]] = {
    "words": in_words,
    "commas": "{:,}".format,
    "latex": lambda number: f"${number:,}$".replace(",", "{,}"),
}


def caught_share_written(
    write: Callable[[int], str], benchmark: Sequence[str], problems: Sequence[Problem]
) -> float | None:
    """Returns the share caught of copies with their numbers so written, None where none differs."""
    planted = {rewrite_numbers(text, write) for text in benchmark} - set(benchmark)
    return len(rules_of(planted, problems)) / len(planted) if planted else None


def rewrite_numbers(text: str, write: Callable[[int], str]) -> str:
    """Returns the text with its whole numbers written so: no part of a fraction, date or word."""
    return WHOLE_NUMBERS.sub(lambda found: write(int(found[0])), text)


if __name__ == "__main__":
    main()
