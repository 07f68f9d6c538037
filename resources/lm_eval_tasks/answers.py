"""How a response becomes an answer, and when an answer is right: for every task, in this one place.

The answer of a response is, in this order:

1. what stands in its last `\\boxed{}`;
2. what stands behind its last `####`, on the same line;
3. its last number or LaTeX expression, whichever comes later.

Two numbers are equal within one millionth; anything else is compared by math-verify, which knows
that 1/2, 0.5 and \\frac{1}{2} are one answer. The tasks' YAML files name `is_correct` as their
metric, so lm-eval's own command scores them in the same way.
"""

import functools
import logging
import re
import threading
from collections.abc import Sequence
from fractions import Fraction

logger = logging.getLogger(__name__)

MAX_ANSWER_LENGTH = 400
"""A longer text is no answer; it is not parsed."""

_TIMEOUT_S = 5
_TOLERANCE = Fraction(1, 1_000_000)

# A minus sign behind a digit or a letter subtracts.
_MINUS = r"(?:(?<![\w)\]}])-)?"
_NUMBER = rf"{_MINUS}(?:(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)"
_LAST = re.compile(rf"\$\$?([^$]+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]|({_NUMBER})", re.DOTALL)
_NUMBER_WITH_UNIT = re.compile(rf"^\$?\s*({_NUMBER})(?:\s*%|\s+[A-Za-z].*)?\.?$")
_BOXED = re.compile(r"\\f?boxed\s*\{")


def is_correct(references: Sequence[str], predictions: Sequence[str]) -> bool:
    """Returns whether the answer in the one prediction equals the one reference."""
    answer = extract_answer(predictions[0])
    return answer is not None and answers_match(str(references[0]), answer)


def extract_answer(response: str) -> str | None:
    """Returns the answer that a response gives, or None where it gives none."""
    boxed = _last_boxed(response)
    if boxed is not None:
        return boxed
    _, marker, rest = response.rpartition("####")
    if marker:
        line = rest.strip().splitlines()[0].strip() if rest.strip() else ""
        number = _NUMBER_WITH_UNIT.match(line)
        return number.group(1) if number else line or None
    found = list(_LAST.finditer(response))
    return next((group for group in found[-1].groups() if group), None) if found else None


def answers_match(reference: str, answer: str) -> bool:
    """Returns whether two answers are the same number, expression, set or text.

    A comparison that takes longer than five seconds is logged and counts as a wrong answer. The
    limit needs the main thread; elsewhere there is none.
    """
    if len(answer) > MAX_ANSWER_LENGTH:
        return False
    if _as_text(reference) == _as_text(answer):
        return True
    expected, given = _as_number(reference), _as_number(answer)
    if expected is not None and given is not None:
        return abs(expected - given) <= _TOLERANCE * max(Fraction(1), abs(expected))
    return _equal_expressions(reference, answer)


def _last_boxed(text: str) -> str | None:
    """Returns the inside of the last \\boxed{} whose braces are closed."""
    for match in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[match.end() : position].strip()
    return None


def _as_text(answer: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", answer.strip().strip("$"))
    return re.sub(r"\s+", "", text).rstrip(".").casefold()


def _as_number(answer: str) -> Fraction | None:
    text = re.sub(r"\\[$%]|[$%\s]|\\!", "", answer).rstrip(".")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def _equal_expressions(reference: str, answer: str) -> bool:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    can_limit = threading.current_thread() is threading.main_thread()
    limit = _TIMEOUT_S if can_limit else None
    _warm_up(600 if can_limit else None)
    try:
        expressions = [
            parse(_as_latex(text), parsing_timeout=limit, raise_on_error=True)
            for text in (reference, answer)
        ]
        return bool(verify(*expressions, timeout_seconds=limit, raise_on_error=True))
    except TimeoutException:
        logger.warning("comparing %r with %r took over %d s: wrong", reference, answer, _TIMEOUT_S)
        return False
    except Exception:
        # Whatever sympy cannot make sense of is not the reference answer.
        logger.debug("cannot compare %r with %r", reference, answer, exc_info=True)
        return False


@functools.cache
def _warm_up(limit: int | None) -> None:
    """Builds the LaTeX grammar, which takes seconds: no answer's time must pay for it."""
    from math_verify import parse

    parse("$\\frac{1}{2}$", parsing_timeout=limit)


def _as_latex(text: str) -> str:
    expression = re.sub(r"(?<=\d)[eE]([+-]?\d+)", r" \\times 10^{\1}", text.strip().strip("$"))
    spaced = re.sub(r",(?=\S)", ", ", expression)
    return f"${spaced}$"
