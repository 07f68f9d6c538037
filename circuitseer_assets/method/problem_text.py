"""A problem's text as words, numbers and signs, the same however it is written.

What two spellings of one problem differ in goes: case, punctuation, LaTeX, and how a number is
written. A changed number or sign stays a difference.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal

_BELOW_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_UNITS = {word: number for number, word in enumerate(_BELOW_TWENTY.split())}
_FROM_TWENTY = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = {word: 10 * number for number, word in enumerate(_FROM_TWENTY, start=2)}
_SCALES = {"dozen": 12, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_AFTER_DIGITS = {"hundred": 100, **_SCALES}

# Where a number ends though another number word follows: five hundred | twenty-dollar bills.
_END_OF_NUMBER = "\x1f"
_TOKENS = re.compile(
    r"\d+(?:\.\d+)?"  # a number, thousands' separators already gone
    r"|[^\W\d_]+"  # a word
    r"|[-+*/^=<>%\x1f]"  # what a sum means, and prose hardly uses
)

_DASHES = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_HYPHENS = re.compile(
    r"(?<=[^\W\d_]{2})-(?=[^\W\d_])"  # inside a word; a minus stays: 5-3, x - y, -(a+b)
    r"|-(?=\s*[^\W\d_]{2})"  # before a word
    r"|-(?!\s*[\w(])"  # before nothing that could be subtracted
)
_ANY_UNIT, _ANY_TENS = "|".join(_UNITS), "|".join(_TENS)
_NUMBER_IN_ADJECTIVE = re.compile(
    rf"\b((?:(?:{_ANY_TENS})-)?(?:{_ANY_UNIT})|{_ANY_TENS})-(?!(?:{_ANY_UNIT})\b)(?=[^\W\d_])"
)

_THOUSANDS = re.compile(r"(?<=\d)(?:,|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_BARE_FRACTIONS = re.compile(r"(?<!\w)\.(?=\d)")  # .5 is 0.5
_DECIMALS = re.compile(r"\d+\.\d+")
_MIXED_NUMBERS = re.compile(
    r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])"
)  # the 1 of 1½ is no digit of it
_PERCENT = re.compile(r"\bper\s?cent\b")
_SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2044": "/", "≤": "<=", "≥": ">="}
)

_LATEX_FRACTIONS = re.compile(
    r"\\[dt]?frac\s*(?:\{(?P<over>[^{}]*)\}|(?P<o>\d))\s*(?:\{(?P<under>[^{}]*)\}|(?P<u>\d))"
)
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/", "le": "<=", "leq": "<="} | {
    "ge": ">=",
    "geq": ">=",
}
_LATEX_LAYOUT = dict.fromkeys(("left", "right", "text", "mathrm", "displaystyle"), "")
_LATEX_NAMES = _LATEX_SIGNS | _LATEX_LAYOUT
_LATEX = re.compile(rf"\\({'|'.join(_LATEX_NAMES)})(?![a-zA-Z])")


@functools.lru_cache(maxsize=64)  # every rule asks for it, of one sample after the other
def normalise_problem(text: str) -> str:
    """Returns the words, numbers and arithmetic signs of `text`, separated by single blanks.

    Compatibility characters (NFKC), case, white space, punctuation, hyphens inside words, LaTeX's
    dollars, fractions and signs, and how a number is written (1,200 or 1200.0 or twelve hundred,
    .5 or 0.50, 3 million, a dozen, 20 percent, a fraction as one character) make no difference; a
    changed number or sign does.
    """
    text = _LATEX.sub(lambda found: f" {_LATEX_NAMES[found[1]]} ", _plain_fractions(text))
    text = _THOUSANDS.sub("", _MIXED_NUMBERS.sub(" ", text))
    text = unicodedata.normalize("NFKC", text).casefold().translate(_SIGNS)
    text = _PERCENT.sub("%", _DASHES.sub("-", text))
    text = _BARE_FRACTIONS.sub("0.", _THOUSANDS.sub("", text))
    text = _DECIMALS.sub(lambda found: found[0].rstrip("0").rstrip("."), text)
    text = _NUMBER_IN_ADJECTIVE.sub(rf"{_END_OF_NUMBER}\1 ", text)
    return " ".join(_numbers_in_digits(_TOKENS.findall(_HYPHENS.sub(" ", text))))


def _plain_fractions(text: str) -> str:
    def in_line(found: re.Match[str]) -> str:
        over, under = found["over"] or found["o"], found["under"] or found["u"]
        return f" {over}/{under} "

    return _LATEX_FRACTIONS.sub(in_line, text)


def _numbers_in_digits(words: Sequence[str]) -> Iterator[str]:
    """Returns the words, every cardinal number that is written out as digits."""
    i = 0
    while i < len(words):
        number, end = _read_number(words, i)
        if number is not None:
            yield number
        elif words[i] != _END_OF_NUMBER:
            yield words[i]
        i = end


def _read_number(words: Sequence[str], start: int) -> tuple[str | None, int]:
    """Returns the number that begins here, None where none does, and where the next word is."""
    if words[start][0].isdigit():
        return _read_scaled_digits(words, start)
    total, i = 0, start
    while True:
        group, end = _read_below_thousand(words, i)
        if end == i and _is_one(words, i, _SCALES):
            group, end = 1, i + 1
        if end == i:
            return (str(total), i) if i > start else (None, start + 1)
        scale = _SCALES.get(words[end], 1) if end < len(words) else 1
        total += group * scale
        i = end + (scale > 1)
        if scale == 1:
            return str(total), i


def _read_scaled_digits(words: Sequence[str], start: int) -> tuple[str, int]:
    after = words[start + 1] if start + 1 < len(words) else ""
    if after not in _AFTER_DIGITS:
        return words[start], start + 1
    number = Decimal(words[start]) * _AFTER_DIGITS[after]
    return f"{number.normalize():f}", start + 2


def _is_one(words: Sequence[str], start: int, of: dict[str, int]) -> bool:
    """Returns whether an article stands for one: a hundred, a million."""
    return words[start : start + 1] == ["a"] and "".join(words[start + 1 : start + 2]) in of


def _read_below_thousand(words: Sequence[str], start: int) -> tuple[int, int]:
    """Returns a number below 1,000 and where it ends: `start`, where there is none."""
    value, i = _read_below_hundred(words, start)
    if i == start and _is_one(words, start, {"hundred": 100}):
        value, i = 1, start + 1
    if i < len(words) and words[i] == "hundred" and 0 < value < 20:
        hundreds, i = 100 * value, i + 1
        joined = i + (words[i : i + 1] == ["and"])
        rest, end = _read_below_hundred(words, joined)
        return hundreds + rest, end if end > joined else i
    return value, i


def _read_below_hundred(words: Sequence[str], start: int) -> tuple[int, int]:
    word = words[start] if start < len(words) else ""
    if word in _UNITS:
        return _UNITS[word], start + 1
    if word not in _TENS:
        return 0, start
    after = _UNITS.get(words[start + 1], 0) if start + 1 < len(words) else 0
    return (_TENS[word] + after, start + 2) if 1 <= after <= 9 else (_TENS[word], start + 1)
