"""Numbers written out in English, among the words of a text, as digits.

In: the words, numbers and signs of a text, in order, with `END_OF_NUMBER` wherever punctuation
parts two numbers; out: the same without those ends, every cardinal number in digits.
"""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

# Where a number ends though another number word follows: twenty. Five | five hundred twenty-dollar
# bills.
END_OF_NUMBER = "\x1f"

_BELOW_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_UNITS = {word: number for number, word in enumerate(_BELOW_TWENTY.split())}
_FROM_TWENTY = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = {word: 10 * number for number, word in enumerate(_FROM_TWENTY, start=2)}
NUMBER_WORDS = frozenset(_UNITS) | frozenset(_TENS)

_HUNDRED = {"hundred": 100}
_SCALES = {"dozen": 12} | {
    word: 1_000**power
    for power, word in enumerate(["thousand", "million", "billion", "trillion"], start=1)
}
# No quarters, which are coins as well, and no seconds.
_FROM_THIRD = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_PARTS = {"half": 2} | {
    word + plural: number for number, word in enumerate(_FROM_THIRD, 3) for plural in ("", "s")
}
# Longer ones are left as they are: a scale shifts these without rounding, in 28 places.
_MAX_SCALED_CHARS = 12

_ANY_UNIT, _ANY_TENS = "|".join(_UNITS), "|".join(_TENS)
_NUMBER_IN_ADJECTIVE = re.compile(
    rf"\b((?:(?:{_ANY_TENS})-)?(?:{_ANY_UNIT})|{_ANY_TENS})-(?!(?:{_ANY_UNIT})\b)(?=[^\W\d_])"
)


def end_numbers_before_adjectives(text: str) -> str:
    """Returns the text, in lower case, with a number's end before twenty-dollar and its like."""
    return _NUMBER_IN_ADJECTIVE.sub(rf"{END_OF_NUMBER}\1 ", text)


def numbers_in_digits(words: Sequence[str]) -> Iterator[str]:
    """Returns the words without the ends of numbers, each number that is written out in digits."""
    i = 0
    while i < len(words):
        read, end = _read_fraction(words, i)
        if end == i:
            read, end = _read_number(words, i)
        if end == i:
            read, end = [words[i]], i + 1
        yield from (word for word in read if word != END_OF_NUMBER)
        i = end


# Each reader returns what begins at `start` and where the next word is: `start` itself, where
# nothing of its kind begins.


def _read_fraction(words: Sequence[str], start: int) -> tuple[list[str], int]:
    """Reads one half or 2 thirds, and half a dozen or half a million."""
    scale = _SCALES.get(_word_at(words, start + 2))
    if scale and list(words[start : start + 2]) == ["half", "a"]:
        return [str(scale // 2)], start + 3
    over, part = words[start], _PARTS.get(_word_at(words, start + 1))
    digits = str(_UNITS.get(over, over))
    if part and digits.isdecimal() and len(digits) <= 2 and 0 < int(digits) < 20:
        return [digits, "/", str(part)], start + 2
    return [], start


def _read_number(words: Sequence[str], start: int) -> tuple[list[str], int]:
    """Reads groups whose scales descend: two million | three hundred and five thousand | ten."""
    total, limit, i = Decimal(0), Decimal("Infinity"), start
    while True:
        group, end = _read_group(words, i)
        scale = _SCALES.get(_word_at(words, end), 1)
        if end == i or group * scale >= limit:
            break
        total, limit, i = total + group * scale, Decimal(scale), end + (scale > 1)
        if scale < 1_000:
            break
    return ([f"{total.normalize():f}"], i) if i > start else ([], start)


def _read_group(words: Sequence[str], start: int) -> tuple[Decimal, int]:
    """Reads what a scale may follow: in words a number up to 1,999, in digits any with its scale.

    An "and" joins what is below a hundred to hundreds: a hundred and five, but one hundred and
    five hundred are two numbers.
    """
    value, i = _read_head(words, start)
    if i == start or _word_at(words, i) != "hundred" or not 0 < value < 20:
        return value, i
    hundreds, i = 100 * value, i + 1
    joined = i + (_word_at(words, i) == "and")
    rest, end = _read_below_hundred(words, joined)
    if end == joined or _word_at(words, end) in ("hundred", "dozen"):
        return hundreds, i
    return hundreds + rest, end


def _read_head(words: Sequence[str], start: int) -> tuple[Decimal, int]:
    """Reads a number below a hundred in words; before a scale, one in digits or the article."""
    word, after = words[start] if start < len(words) else "", _word_at(words, start + 1)
    if after in _SCALES or after in _HUNDRED:
        if word == "a":
            return Decimal(1), start + 1
        if word[:1].isdecimal() and len(word) <= _MAX_SCALED_CHARS:
            scaled = after in _SCALES or 0 < Decimal(word) < 20
            return Decimal(word), start + scaled
    return _read_below_hundred(words, start)


def _read_below_hundred(words: Sequence[str], start: int) -> tuple[Decimal, int]:
    word, after = _word_at(words, start), _UNITS.get(_word_at(words, start + 1), 0)
    if word in _UNITS:
        return Decimal(_UNITS[word]), start + 1
    if word in _TENS:
        joined = 1 <= after <= 9
        return Decimal(_TENS[word] + joined * after), start + 1 + joined
    return Decimal(0), start


def _word_at(words: Sequence[str], i: int) -> str:
    """Returns the word at a place, nothing past the last one."""
    return words[i] if i < len(words) else ""
