import random

from bench.decontamination import change_words, measure
from circuitseer_assets.method.word_problems import generate_problems


def test_copies_are_caught_and_other_problems_left() -> None:
    asked = [p.prompt for p in generate_problems(40, seed=2, split="held_out", min_steps=3)]
    result = measure([*asked[:3], "A clean problem about 7 geese and 9 ponds."], asked)
    assert result["num_removed"] == 3
    assert result["removed_by_rule"] == {"verbatim": 3}
    assert result["min_caught_share"] >= 0.98


def test_as_many_words_change_as_asked_and_no_number() -> None:
    text = "Ann has 12 apples and gives 5 of them to her brother on Monday morning"
    for number in (1, 2, 3, 4):
        changed = change_words(text, number, random.Random(0))
        assert changed is not None
        pairs = list(zip(text.split(), changed.split(), strict=True))
        assert sum(old != new for old, new in pairs) == number
        assert all(old == new for old, new in pairs if old.isdigit())
    assert change_words("Add 3 to 5.", 2, random.Random(0)) is None
