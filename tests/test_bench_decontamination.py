import random

from bench.decontamination import (
    NUMBER_FORMATS,
    caught_share_written,
    change_words,
    measure,
    rewrite_numbers,
)
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import Problem


def test_copies_are_caught_and_other_problems_left() -> None:
    asked = [p.prompt for p in generate_problems(40, seed=2, split="held_out", min_steps=3)]
    result = measure([*asked[:3], "A clean problem about 7 geese and 9 ponds."], asked)
    assert result["num_removed"] == 3
    assert result["removed_by_rule"] == {"verbatim": 3}
    assert result["min_caught_share"] >= 0.98
    assert result["caught_share_other_number_format"] == 1
    # No number of these has thousands: nothing is rewritten, and nothing claimed.
    assert result["caught_share_by_number_format"] == {"words": 1, "commas": None, "latex": 1}


def test_as_many_words_change_as_asked_and_no_number() -> None:
    text = "Ann has 12 apples and gives 5 of them to her brother on Monday morning"
    for number in (1, 2, 3, 4):
        changed = change_words(text, number, random.Random(0))
        assert changed is not None
        pairs = list(zip(text.split(), changed.split(), strict=True))
        assert sum(old != new for old, new in pairs) == number
        assert all(old == new for old, new in pairs if old.isdigit())
    assert change_words("Add 3 to 5.", 2, random.Random(0)) is None


def test_whole_numbers_alone_are_written_otherwise() -> None:
    text = "The 24 of 1764 pay 2.5 or 1/2 by 9:30, 12000 at 5% in 2b and 90. Add 7."
    written = {name: rewrite_numbers(text, write) for name, write in NUMBER_FORMATS.items()}
    rest = "pay 2.5 or 1/2 by 9:30,"
    assert written == {
        "words": f"The twenty-four of 1764 {rest} 12000 at 5% in 2b and ninety. Add seven.",
        "commas": f"The 24 of 1,764 {rest} 12,000 at 5% in 2b and 90. Add 7.",
        "latex": f"The $24$ of $1{{,}}764$ {rest} $12{{,}}000$ at 5% in 2b and $90$. Add $7$.",
    }


def test_a_copy_whose_numbers_are_lost_is_not_caught() -> None:
    """The share is measured, not assumed: Roman numerals would be missed."""
    asked = [f"What is {number} + 12?" for number in range(20)]
    problems = [Problem("toy", str(i), text) for i, text in enumerate(asked)]
    assert caught_share_written(lambda number: "X" * number, asked, problems) == 0
