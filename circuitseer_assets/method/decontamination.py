"""The slice `decontamination`: samples that repeat a benchmark's problem, found and named.

Stage in: samples and the problems of every benchmark listed; out: one record for every sample and
problem that match, with the rule that says so. A rule is a function from the problems to a
matcher; `RULES` names them, strongest first. Problems are held in memory, samples are streamed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from circuitseer_assets.method.problem_text import normalise_problem
from circuitseer_assets.records import Problem, Sample

if TYPE_CHECKING:
    from datasketch import MinHash


@dataclass(frozen=True, slots=True)
class ContaminatedSample:
    """One sample that repeats one problem of a benchmark, by the strongest rule that finds it."""

    sample_id: str
    task: str
    doc_id: str
    rule: str


_NUM_HASHES = 128
_MIN_JACCARD = 0.6
# Numbers say what a problem asks to be done with. One alone is in many problems: there the words
# have to be more alike.
_MIN_ALIKE, _MIN_ALIKE_ONE_QUANTITY = 0.6, 0.7
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
    of_any = frozenset().union(*pairs)

    def matches(sample: Sample) -> Iterator[Problem]:
        for text in _asked_texts(sample):
            own = _ngrams(normalise_problem(text).split(), 2)
            # Hashing costs by far the most, and who shares too little with all cannot with one.
            if len(own) < _MIN_PAIRS or len(own & of_any) < _MIN_JACCARD * len(own):
                continue
            for number in sorted(index.query(_min_hash(own))):
                if len(own & pairs[number]) >= _MIN_JACCARD * len(own | pairs[number]):
                    yield problems[number]

    return matches


def match_same_quantities(problems: Sequence[Problem]) -> Matcher:
    """Returns a matcher of prompts with a problem's numbers and signs, and most of its words.

    The numbers and signs are the same, in the same order, and at least 60 % of all words stand in
    the same order, 70 % where there is a single number or sign: short problems, in which a few
    changed words leave few runs as they were. It errs to the side of removing: the sum of 3 and 5
    is taken for their product. Of GSM8K's training problems none with a test problem's numbers is
    more like it than 42 %, and none of SVAMP's is removed for GSM8K's test, nor the other way.
    """
    words_of = [normalise_problem(problem.prompt).split() for problem in problems]
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, words in enumerate(words_of):
        if quantities := _quantities(words):
            holders[quantities].append(number)

    def matches(sample: Sample) -> Iterator[Problem]:
        for text in _asked_texts(sample):
            words = normalise_problem(text).split()
            quantities = _quantities(words)
            if len(words) <= _MIN_PAIRS:
                continue
            min_alike = _MIN_ALIKE if len(quantities) > 1 else _MIN_ALIKE_ONE_QUANTITY
            alike = SequenceMatcher(None, b=words, autojunk=False)
            for number in holders.get(quantities, ()):
                alike.set_seq1(words_of[number])
                # The two quick ratios are upper bounds: most pairs are told apart by them.
                ratios = (alike.real_quick_ratio, alike.quick_ratio, alike.ratio)
                if all(ratio() >= min_alike for ratio in ratios):
                    yield problems[number]

    return matches


RULES: Mapping[str, Rule] = {
    "verbatim": match_verbatim,
    "normalised": match_normalised,
    "13_words": match_long_run,
    "8_words": match_many_runs,
    "near_duplicate": match_near_duplicate,
    "same_quantities": match_same_quantities,
}


def _quantities(words: Sequence[str]) -> tuple[str, ...]:
    """Returns the numbers and signs among normalised words."""
    return tuple(word for word in words if not word[0].isalpha())


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
                if run in holders:
                    shared.update(holders[run])
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
