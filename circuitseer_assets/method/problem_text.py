"""A problem's text as words, numbers and signs, the same however it is written.

What two spellings of one problem differ in goes: case, punctuation, LaTeX, and how a number is
written. A changed number or sign stays a difference, and so does what parentheses group.
"""

import functools
import re
import unicodedata
from itertools import accumulate

from circuitseer_assets.method.number_words import (
    END_OF_NUMBER,
    NUMBER_WORDS,
    end_numbers_before_adjectives,
    numbers_in_digits,
)


@functools.lru_cache(maxsize=64)  # every rule asks for it, of one sample after the other
def normalise_problem(text: str) -> str:
    """Returns the words, numbers and arithmetic signs of `text`, separated by single blanks.

    No difference make: compatibility characters (NFKC), case, white space, punctuation, hyphens
    inside words and dashes between them, parentheses that group no arithmetic, LaTeX's dollars,
    fractions, roots, powers and signs, and how a number is written (1,200 or 1{,}200 or 1200.0 or
    twelve hundred, .5 or 0.50, 3 million, half a dozen, 20 percent, one half, ½, x²).

    Still a difference: plus, minus and times in words, a decimal fraction against a common one or
    a percentage, numbers with a blank or an apostrophe between thousands or a comma before the
    decimals, numbers in words that hold a comma or a "thousand and", ordinals, quarters, $1.5M,
    degrees, ** for a power. None: what is a bracket's kind, a colon, a subscript, a set's signs.

    Any text is taken, in time linear in its length. Not idempotent: the punctuation that parts
    "5. Million" from "5 million" is gone from what is returned.
    """
    text = _plain_numbers(_plain_latex(_plain_characters(text)))
    text = _HYPHENS.sub(" ", end_numbers_before_adjectives(text))
    tokens = _TOKENS.findall(_NO_FACTORIALS.sub(".", text))
    return " ".join(numbers_in_digits(_signs_that_matter(tokens)))


# Characters -----------------------------------------------------------------------------------

# Before case is lost: an exclamation mark before a new sentence is no factorial.
_EXCLAMATIONS = re.compile(r"!(?=\s+[A-Z])")
# Before NFKC makes 23 of 2³, 11/2 of 1½, and a blank of the space in 1 200.
_SUPERSCRIPTS = re.compile(r"(?<=[\w)\]}])[\u2070\u00b9\u00b2\u00b3\u2074-\u207b\u207f]+")
_MIXED_NUMBERS = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_THIN_SPACES = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")

_DIGITS_OF_OTHER_SCRIPTS = re.compile(r"(?![0-9])\d")
_SIGNS = str.maketrans(
    dict.fromkeys("\u00d7\u00b7\u22c5\u2217\u2219", "*")
    | dict.fromkeys("\u00f7\u2044\u2215", "/")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
    | {"≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": " != ", "\u2223": "|"}
    | {"√": " sqrt ", "π": " pi "}
)


def _plain_characters(text: str) -> str:
    """Returns the text in lower case, with plain digits and signs, powers behind a caret."""
    text = _EXCLAMATIONS.sub(".", text)
    text = _SUPERSCRIPTS.sub(r"^(\g<0>)", text)
    text = _THIN_SPACES.sub(",", _MIXED_NUMBERS.sub(" ", text))
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    return _DIGITS_OF_OTHER_SCRIPTS.sub(lambda found: str(int(found[0])), text)


# LaTeX ----------------------------------------------------------------------------------------

_LATEX_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;:])(?=\d{3}(?!\d))")
_LATEX_MODES = re.compile(r"\\[()\[\]{}]|\\?\$")
_LATEX_NAMES = (
    dict.fromkeys(("times", "cdot", "ast"), "*")
    | dict.fromkeys(("le", "leq", "leqslant"), "<=")
    | dict.fromkeys(("ge", "geq", "geqslant"), ">=")
    | dict.fromkeys(("ne", "neq"), "!=")
    | dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|")
    | {"div": "/", "pm": "±"}
    | dict.fromkeys(("left", "right", "bigl", "bigr", "big", "text", "mathrm", "displaystyle"), "")
)
_LATEX = re.compile(rf"\\({'|'.join(_LATEX_NAMES)})(?![a-z])")
_FRACTIONS_OF_DIGITS = re.compile(r"\\[cdt]?frac\s*(\d)\s*(\d?)")
_BRACES = re.compile(r"(?P<over>\\[cdt]?frac\s*\{)|(?P<open>[{\[])|[}\]]")


def _plain_latex(text: str) -> str:
    r"""Returns the text without LaTeX's layout, \frac{a}{b} as (a)/(b), braces as parentheses."""
    text = _LATEX_MODES.sub(" ", _LATEX_THOUSANDS.sub("", text))
    text = _LATEX.sub(lambda found: f" {_LATEX_NAMES[found[1]]} ", text)
    text = _FRACTIONS_OF_DIGITS.sub(r" \1/\2 ", text)
    ends: list[str] = []

    def parenthesis(found: re.Match[str]) -> str:
        if found["over"] or found["open"]:
            ends.append(")/" if found["over"] else ")")
            return "("
        return ends.pop() if ends else ")"

    return _BRACES.sub(parenthesis, text)


# Numbers, hyphens and exclamation marks ---------------------------------------------------------

_PERCENT = re.compile(r"\bper\s?cent\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BARE_FRACTIONS = re.compile(r"(?<![\w.])\.(?=\d)")  # .5 is 0.5
_DECIMALS = re.compile(r"(?<![\d.])\d++\.\d++(?!\.\d)")  # one try for a run of digits

_LETTER = r"(?<![^\W\d_])[b-hj-z]"  # a variable; a and I are words
_NO_FACTORIALS = re.compile(rf"(?<!\d)(?<!{_LETTER})(?<!\d\))(?<!{_LETTER}\))!(?!=)")
_FUNCTIONS = ("sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp")
_OPERANDS = "|".join([*NUMBER_WORDS, *_FUNCTIONS])
_HYPHENS = re.compile(
    r"(?<=[^\W\d_]{2})-(?=[^\W\d_])"  # inside a word; a minus stays: 5-3, x - y, -(a+b)
    rf"|-(?=\s*(?!(?:{_OPERANDS})\b)[^\W\d_]{{2}})"  # before a word
    r"|-(?!\s*(?:[\w(]|\|[\w(]|\\[a-z]))"  # before nothing that could be subtracted
)


def _plain_numbers(text: str) -> str:
    """Returns the text with every number in digits as digits, one point and no needless zero."""
    text = _THOUSANDS.sub("", _PERCENT.sub("%", text))
    text = _BARE_FRACTIONS.sub("0.", text)
    return _DECIMALS.sub(lambda found: found[0].rstrip("0").rstrip("."), text)


# Words and signs ------------------------------------------------------------------------------

_TOKENS = re.compile(
    r"\d+(?:\.\d+)?"  # a number, thousands' separators already gone
    r"|[^\W\d_]+"  # a word
    r"|(?<!\d)!="  # 5!=120 is a factorial
    r"|[-+±*/^=<>%!|()]"  # what a sum means, and prose hardly uses
    rf"|[,.;:?{END_OF_NUMBER}]"
)
_PUNCTUATION = frozenset(",.;:?")
_ARITHMETIC = frozenset("+-±*/^")


def _signs_that_matter(tokens: list[str]) -> list[str]:
    """Returns the tokens, with a number's end for punctuation and for signs that say nothing."""
    grouping = _grouping_parentheses(tokens)

    def matters(i: int, token: str) -> bool:
        if token in ("(", ")"):
            return i in grouping
        return token not in _PUNCTUATION and (token != "|" or _adjoins_arithmetic(tokens, i, i))

    return [token if matters(i, token) else END_OF_NUMBER for i, token in enumerate(tokens)]


def _grouping_parentheses(tokens: list[str]) -> set[int]:
    """Returns where the parentheses are without which the arithmetic would be another.

    They hold a sign and stand next to arithmetic, or hold several words or numbers that a sign
    next to them takes as one: (2x)^2, 1/(2x). A pair directly inside another is needless.
    """
    opened: list[int] = []
    ends: dict[int, int] = {}
    for i, token in enumerate(tokens):
        if token == "(":
            opened.append(i)
        elif token == ")" and opened:
            ends[opened.pop()] = i
    num_signs = list(accumulate((token in _ARITHMETIC for token in tokens), initial=0))
    num_operands = list(accumulate((token[0].isalnum() for token in tokens), initial=0))

    def groups(start: int, end: int) -> bool:
        if ends.get(start - 1) == end + 1:
            return False
        if num_signs[end] > num_signs[start]:
            return _adjoins_arithmetic(tokens, start, end)
        before, after = tokens[start - 1 : start], tokens[end + 1 : end + 2]
        taken_as_one = before in (["/"], ["^"], ["sqrt"]) or after in (["^"], ["!"])
        return taken_as_one and num_operands[end] - num_operands[start] > 1

    return {i for pair in ends.items() if groups(*pair) for i in pair}


def _adjoins_arithmetic(tokens: list[str], start: int, end: int) -> bool:
    """Returns whether a number, a letter, a function or a sign stands directly before or after."""
    return any(
        token[0].isdecimal()
        or (token.isalpha() and len(token) == 1)
        or token in _FUNCTIONS
        or token in _ARITHMETIC
        or token in ("(", ")", "|", "!")
        for token in tokens[start - 1 : start] + tokens[end + 1 : end + 2]
    )
