import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitseer_assets.method.problem_text import normalise_problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8 - 2", "8 / 2"),
        ("8 * 2", "8 / 2"),
        ("x - y", "x + y"),
        ("1.5", "15"),
        ("-3", "3"),
        ("a < b", "a > b"),
        ("x^2", "x2"),
        ("1,23", "123"),
        ("50 %", "50"),
        (".5", "5"),
        ("twenty four", "20 4"),
        ("twenty fourteen", "34"),
        ("two three", "5"),
        ("forty and two", "42"),
        ("3 million", "3000"),
        ("a dozen", "a half dozen"),
        ("20 percent", "20"),
        (r"\frac{1}{2}", "12"),
        (r"3 \cdot 4", "34"),
        ("five hundred twenty-dollar bills", "520 dollar bills"),
        ("a boy", "1 boy"),
        # signs
        (r"5 - \pi", r"5\pi"),
        (r"\sin x - \cos x", r"\sin x \cos x"),
        ("sin x - cos x", "sin x cos x"),
        (r"-\sqrt{2}", r"\sqrt{2}"),
        (r"5 - \alpha", r"5 \alpha"),
        ("a balance of -$5", "a balance of $5"),
        ("$5 - $3", "$5, $3"),
        ("ten - five", "ten, five"),
        ("4 - |x|", "4 |x|"),
        ("2\u00b3", "23"),
        ("10\u00b2 + 1", "102 + 1"),
        ("x\u207b\u00b9", "x^1"),
        ("\u221a16", "16"),
        ("5!", "5"),
        ("What is 5! - 3?", "What is 5 - 3?"),
        ("5! = 120", "5 != 120"),
        ("n!", "n"),
        ("|x-3| = 5", "x-3 = 5"),
        ("x != 3", "x = 3"),
        ("x \u2260 3", "x 3"),
        ("\u00b15", "5"),
        # what is grouped
        (r"\frac{a+b}{c}", r"a+\frac{b}{c}"),
        (r"\frac{1}{2+3}", r"\frac12+3"),
        (r"\frac{1}{2x}", r"\frac{1}{2}x^1"),
        (r"\frac{\frac{1}{2}}{3}", r"\frac{1}{\frac{2}{3}}"),
        ("(2+3)*4", "2+3*4"),
        ("2(x+1)", "2x+1"),
        ("(2x)^2", "2x^2"),
        ("(2n)!", "2n!"),
        ("x^{a+b}", "x^a+b"),
        ("x^{2y}", "x^2y"),
        ("x^{10}", "x^10 0"),
        (r"\sqrt{x+1}", r"\sqrt{x}+1"),
        ("a_{n+1}", "a_n + 1"),
        # where a number ends
        ("Tom has twenty. Five apples fell", "Tom has twenty-five apples fell"),
        ("twenty, five and three", "twenty-five and three"),
        ("twenty (five)", "twenty-five"),
        ("He had one hundred. Two friends came", "He had 102 friends came"),
        ("one thousand, two thousand", "3,000"),
        ("five thousand ten thousand", "15,000"),
        ("one thousand twelve hundred", "2200"),
        ("2..5", "2.5"),
        ("version 3.0.5", "version 3.5"),
        ("1" * 40 + "1 million", "1" * 40 + "2 million"),
    ],
)
def test_a_changed_sign_or_number_is_another_problem(one, other):
    assert normalise_problem(one) != normalise_problem(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8\u22122", "8 - 2"),
        ("3 \u00d7 4", "3*4"),
        ("a $9$-kilometer walk", "A 9 kilometer walk"),
        ("well-known", "well known"),
        ("the dog - who ran - slept", "the dog, who ran, slept"),
        ("x=5", "x = 5"),
        ("12,000,000", "12000000"),
        ("5.0 kg", "5 kg"),
        ("$3.50", "$3.5"),
        ("twelve boxes", "12 boxes"),
        ("twenty-four boxes", "24 boxes"),
        ("ninety one boxes", "91 boxes"),
        ("two hundred and five boxes", "205 boxes"),
        ("twelve hundred boxes", "1,200 boxes"),
        ("one million two hundred thousand and three boxes", "1200000 and 3 boxes"),
        ("sixty thousand boxes", "60,000 boxes"),
        (".5 kg", "0.50 kg"),
        ("20 percent", "20 %"),
        ("20 per cent", "20%"),
        ("1/2 cup", "\u00bd cup"),
        ("1 1/2 cups", "1\u00bd cups"),
        (r"$\frac{1}{2}$ cup", "1/2 cup"),
        (r"\dfrac12", "1/2"),
        (r"$3 \times 4 \div 2$", "3 * 4 / 2"),
        (r"\left( 2 \cdot x \right) \leq \text{six}", "(2 \u00b7 x) \u2264 6"),
        ("a hundred boxes", "100 boxes"),
        ("a hundred and twenty boxes", "120 boxes"),
        ("a thousand boxes", "1,000 boxes"),
        ("3 million", "3,000,000"),
        ("2.5 million", "2500000"),
        ("three million", "3 million"),
        ("4 hundred", "four hundred"),
        ("two dozen eggs", "24 eggs"),
        ("a dozen eggs", "12 eggs"),
        ("1\u202f200\u00a0000", "1,200,000"),
        ("a twenty-four-hour day", "a 24-hour day"),
        ("five hundred twenty-dollar bills", "500 20-dollar bills"),
        # signs
        (r"5 - \pi", "5 - \u03c0"),
        ("x\u00b2", "x^2"),
        ("x^{10}", "x\u00b9\u2070"),
        ("x\u207b\u00b9", "x^{-1}"),
        (r"\sqrt{2}", "\u221a2"),
        (r"\sqrt 8", "\u221a8"),
        (r"x \neq 3", "x \u2260 3"),
        (r"\pm 5", "\u00b15"),
        ("3\u22c54", "3 * 4"),
        ("3\u22174", "3 * 4"),
        ("3\u22154", "3 / 4"),
        (r"\left| x - 3 \right|", "|x-3|"),
        ("one | two words", "one, two words"),
        ("He won 5! How many are left!", "He won 5. How many are left?"),
        ("What a day!", "What a day"),
        ("Tom - who is ten - ran", "Tom (who is 10) ran"),
        # what is grouped
        (r"\left( 2+3 \right) * 4", "(2+3)*4"),
        (r"\frac{a+b}{c}", "(a+b)/c"),
        (r"\frac{2x}{3}", "2x/3"),
        (r"\frac{(a+b)}{c}", "(a + b) / c"),
        (r"2\frac{1}{2}", "2\u00bd"),
        (r"\frac1{2}", r"\tfrac{1}2"),
        ("[2+3]*4", "(2+3)*4"),
        ("((2+3))*4", "(2+3)*4"),
        (r"\(x + 1\)", "$x+1$"),
        (r"\frac{\text{total cost}}{3}", "total cost / 3"),
        ("the rest (1/2 cup) goes in", "the rest, 1/2 cup, goes in"),
        ("(see below) and", "see below and"),
        # numbers
        ("between one hundred and five hundred", "between 100 and 500"),
        ("two thousand, three thousand and four thousand", "2,000, 3,000 and 4,000"),
        ("He had one hundred. Two friends came.", "He had 100. 2 friends came."),
        ("the numbers twenty, five and three", "the numbers 20, 5 and 3"),
        ("one hundred and five thousand", "105,000"),
        ("2 thousand 5 hundred", "2500"),
        ("2 thousand five hundred", "2,500"),
        ("2 hundred thousand", "200,000"),
        ("1 trillion", "one trillion"),
        ("half a dozen eggs", "6 eggs"),
        ("half a million", "500,000"),
        ("one half of it", "1/2 of it"),
        ("two-thirds", "2/3"),
        ("2 third graders", "two third graders"),
        ("1{,}764", "1,764"),
        (r"1,\!000", "1000"),
        (r"1\,000", "1000"),
        (r"1\!000\!000", "1,000,000"),
        ("\u0663 apples", "3 apples"),
    ],
)
def test_other_spellings_of_the_same_problem(one, other):
    assert normalise_problem(one) == normalise_problem(other)


HOSTILE = [
    *("1", "111,", "1.", ".", "-", "- ", "-" + " " * 50, "a", "%", "$", "\\", "!", "5!", "! "),
    *("\\frac{", "\\frac", "\\frac" + " " * 200, "\\frac1", "\\sqrt{", "1{,}000"),
    *("(", "()", "((1+1)", ")", "{", "|", "|x", "1\u00a0000", "\u00b2", "1\u00bd", "\u0663"),
    *("one thousand ", "twenty-", "a hundred ", "1 million ", "one half ", "per cent "),
]


@pytest.mark.parametrize("shape", HOSTILE)
def test_no_text_takes_more_than_linear_time(shape: str):
    """A search that begins anew at each of 100,000 digits takes 10 to 20 s, a linear one 0.05."""
    text = shape * (100_000 // len(shape))
    started = time.process_time()
    normalise_problem(text)
    assert time.process_time() - started < 4


@pytest.mark.parametrize("scale", ["hundred", "million", "trillion", "half"])
@pytest.mark.parametrize("number", ["9" * 5000, "0." + "9" * 5000, "\u1369", "\u2460"])
def test_numbers_of_any_length_and_script_are_taken(number: str, scale: str):
    assert normalise_problem(f"{number} {scale}")


FRAGMENTS = r"""
one two twenty hundred thousand million dozen half third a and per cent 5 2.5 1,000 . , - ( ) { } [
] | ! != ^ / * % $ \ \frac \left \text \, ² ½ √ ፩ ٣ x
"""
PIECES = st.sampled_from(FRAGMENTS.split())


@given(st.text() | st.lists(PIECES | st.just(" ")).map("".join) | st.lists(PIECES).map(" ".join))
def test_any_text_is_taken_and_becomes_words_numbers_and_signs(text: str):
    normalised = normalise_problem(text)
    token = r"(\d+(\.\d+)?|[^\W\d_]+|[-+\u00b1*/^=<>%!|()]|!=)"
    assert re.fullmatch(rf"({token}( {token})*)?", normalised)
    assert normalised == normalised.casefold()
    assert normalised.count("(") == normalised.count(")")


NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
BELOW_TWENTY, TENS = NUMBERS.split()[:20], NUMBERS.split()[20:]


def in_words(number: int) -> str:
    """A number as it is read out, from its definition."""
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand")):
        if number >= size:
            rest = f" {in_words(number % size)}" if number % size else ""
            return f"{in_words(number // size)} {name}{rest}"
    if number >= 100:
        rest = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{BELOW_TWENTY[number // 100]} hundred{rest}"
    if number < 20:
        return BELOW_TWENTY[number]
    return TENS[number // 10 - 2] + (f"-{BELOW_TWENTY[number % 10]}" if number % 10 else "")


@given(st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=4))
def test_numbers_in_words_are_those_in_digits(numbers: list[int]):
    words = normalise_problem("; ".join(map(in_words, numbers)))
    assert words == " ".join(map(str, numbers))
    assert words == normalise_problem("; ".join(f"{number:,}" for number in numbers))
