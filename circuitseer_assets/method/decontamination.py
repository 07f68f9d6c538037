"""The slice `decontamination`: samples that repeat a benchmark's problem, found and named.

Stage in: samples and the problems of every benchmark listed; out: one record for every sample and
problem that match, with the rule that says so. A rule is a function from the problems to a
matcher; `RULES` names them, strongest first. Problems are held in memory, samples are streamed.
"""

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitseer_assets.records import Problem, Sample

if TYPE_CHECKING:
    from datasketch import MinHash

_DASHES = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_TOKENS = re.compile(
    r"\d+(?:\.\d+)?"  # a number, thousands' commas already gone
    r"|[^\W\d_]+"  # a word
    r"|[-+*/^=<>%]"  # what a sum means, and prose hardly uses
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_HYPHENS = re.compile(
    r"(?<=[^\W\d_]{2})-(?=[^\W\d_])"  # inside a word; a minus stays: 5-3, x - y, -(a+b)
    r"|-(?=\s*[^\W\d_]{2})"  # before a word
    r"|-(?!\s*[\w(])"  # before nothing that could be subtracted
)
_DECIMALS = re.compile(r"\d+\.\d+")
_OPERATORS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "≤": "<=", "≥": ">="})


@dataclass(frozen=True, slots=True)
class ContaminatedSample:
    """One sample that repeats one problem of a benchmark, by the strongest rule that finds it."""

    sample_id: str
    task: str
    doc_id: str
    rule: str


_NUMBERS_IN_WORDS = {
    word: str(number)
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
} | {
    word: str(10 * number)
    for number, word in enumerate(
        ["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 3
    )
}
_NUM_HASHES = 128
_MIN_JACCARD = 0.6
# Below the similarity asked for, so that a hash's error loses no pair that has it.
_CANDIDATE_JACCARD = 0.45
# Shorter texts have too few pairs of words to be like another by more than chance.
_MIN_PAIRS = 6

Matcher = Callable[[Sample], Iterable[Problem]]
Rule = Callable[[Sequence[Problem]], Matcher]


def find_contaminated(
    samples: Iterable[Sample], problems: Iterable[Problem]
) -> Iterator[ContaminatedSample]:
    """Returns a record for every sample and problem that match, in the order of the samples."""
    listed = tuple(problems)
    matchers = {name: rule(listed) for name, rule in RULES.items()}
    for sample in samples:
        found: dict[tuple[str, str], str] = {}
        for name, matches in matchers.items():
            for problem in matches(sample):
                found.setdefault((problem.task, problem.doc_id), name)
        for (task, doc_id), rule in found.items():
            yield ContaminatedSample(sample.sample_id, task, doc_id, rule)


@functools.lru_cache(maxsize=64)  # every rule asks for it, of one sample after the other
def normalise_problem(text: str) -> str:
    """Returns the words, numbers and arithmetic signs of `text`, separated by single blanks.

    Compatibility characters (NFKC), case, white space, punctuation, LaTeX's dollars, hyphens
    inside words and how a number is written (1,200 or 1200.0, twelve or 12) make no difference; a
    changed number or sign does.
    """
    text = unicodedata.normalize("NFKC", text.translate(_OPERATORS)).casefold()
    text = _THOUSANDS.sub("", _DASHES.sub("-", text))
    text = _DECIMALS.sub(lambda found: found[0].rstrip("0").rstrip("."), text)
    words = _TOKENS.findall(_HYPHENS.sub(" ", text))
    return " ".join(_NUMBERS_IN_WORDS.get(word, word) for word in words)


def match_verbatim(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts that are a problem's text, white space at the ends aside."""
    return _exact_matcher(problems, str.strip)


def match_normalised(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts that equal a problem's text once both are normalised."""
    return _exact_matcher(problems, normalise_problem)


def match_long_run(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts that share any 13 words in a row with a problem.

    Reference: Brown et al., arXiv 2005.14165 (13 words).
    """
    return _ngram_matcher(problems, size=13, min_share=0.0)


def match_many_runs(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts that hold half of a problem's runs of 8 words.

    One run of 8 in common is a phrase: by that rule GSM8K's training problems would lose 1.3 % to
    its test problems, by half of the runs 0.03 %.
    """
    return _ngram_matcher(problems, size=8, min_share=0.5)


def match_near_duplicate(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts whose pairs of words are mostly those of a problem.

    The Jaccard similarity of the two texts' sets of word pairs is at least 0.6. MinHash finds who
    may be that like; the similarity itself is then computed exactly.

    Reference: Broder 1997, On the resemblance and containment of documents.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=_CANDIDATE_JACCARD, num_perm=_NUM_HASHES)
    pairs = [_ngrams(normalise_problem(problem.prompt).split(), 2) for problem in problems]
    for number, own in enumerate(pairs):
        if len(own) >= _MIN_PAIRS:
            index.insert(number, _min_hash(own))

    def matches(sample: Sample) -> Iterator[Problem]:
        for text in _asked_texts(sample):
            own = _ngrams(normalise_problem(text).split(), 2)
            if len(own) < _MIN_PAIRS:
                continue
            for number in sorted(index.query(_min_hash(own))):
                if len(own & pairs[number]) >= _MIN_JACCARD * len(own | pairs[number]):
                    yield problems[number]

    return matches


RULES: Mapping[str, Rule] = {
    "verbatim": match_verbatim,
    "normalised": match_normalised,
    "13_words": match_long_run,
    "8_words": match_many_runs,
    "near_duplicate": match_near_duplicate,
}


def _ngrams(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def _ngram_matcher(problems: Sequence[Problem], *, size: int, min_share: float) -> Matcher:
    """Returns a matcher of prompts that hold more than a share of a problem's runs of words."""
    runs = [_ngrams(normalise_problem(problem.prompt).split(), size) for problem in problems]
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, own in enumerate(runs):
        for run in own:
            holders[run].append(number)

    def matches(sample: Sample) -> Iterator[Problem]:
        for text in _asked_texts(sample):
            shared: Counter[int] = Counter()
            for run in _ngrams(normalise_problem(text).split(), size):
                shared.update(holders.get(run, ()))
            for number in sorted(shared):
                if shared[number] >= min_share * len(runs[number]):
                    yield problems[number]

    return matches


def _min_hash(pairs: set[tuple[str, ...]]) -> "MinHash":
    from datasketch import MinHash

    made = MinHash(num_perm=_NUM_HASHES, seed=1)
    made.update_batch([" ".join(pair).encode() for pair in pairs])
    return made


def _exact_matcher(problems: Sequence[Problem], key_of: Callable[[str], str]) -> Matcher:
    problems_by_key: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if key := key_of(problem.prompt):
            problems_by_key[key].append(problem)

    def matches(sample: Sample) -> Iterator[Problem]:
        for text in _asked_texts(sample):
            yield from problems_by_key.get(key_of(text), ())

    return matches


def _asked_texts(sample: Sample) -> Iterator[str]:
    """Returns what may be a problem's text: the whole prompt, and every single turn of a chat."""
    yield sample.prompt
    if len(sample.messages) > 1:
        for message in sample.messages:
            yield message.content
