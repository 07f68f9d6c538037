import pytest

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
    ],
)
def test_other_spellings_of_the_same_problem(one, other):
    assert normalise_problem(one) == normalise_problem(other)
