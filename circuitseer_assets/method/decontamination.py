"""The slice `decontamination`: samples that repeat a benchmark's problem, found and named.

Stage in: samples and the problems of every benchmark listed; out: one record for every sample and
problem that match, with the rule that says so. A rule is a function from the problems to a
matcher; `RULES` names them, strongest first. Problems are held in memory, samples are streamed.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from circuitseer_assets.records import Problem, Sample

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
_OPERATORS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "≤": "<=", "≥": ">="})


@dataclass(frozen=True, slots=True)
class ContaminatedSample:
    """One sample that repeats one problem of a benchmark, by the strongest rule that finds it."""

    sample_id: str
    task: str
    doc_id: str
    rule: str


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


def normalise_problem(text: str) -> str:
    """Returns the words, numbers and arithmetic signs of `text`, separated by single blanks.

    Compatibility characters (NFKC), case, white space, punctuation, LaTeX's dollars, hyphens
    inside words and the commas of thousands make no difference; a changed number or sign does.
    """
    text = unicodedata.normalize("NFKC", text.translate(_OPERATORS)).casefold()
    text = _THOUSANDS.sub("", _DASHES.sub("-", text))
    return " ".join(_TOKENS.findall(_HYPHENS.sub(" ", text)))


def match_verbatim(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts that are a problem's text, white space at the ends aside."""
    return _exact_matcher(problems, str.strip)


def match_normalised(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts that equal a problem's text once both are normalised."""
    return _exact_matcher(problems, normalise_problem)


RULES: Mapping[str, Rule] = {
    "verbatim": match_verbatim,
    "normalised": match_normalised,
}


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
