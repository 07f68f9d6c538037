"""Whatever is bad about an input is told in one sentence; the table is printed at the end."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_inputs import BAD_INPUTS, BadInput


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=[f"{bad.kind}: {bad.what}" for bad in BAD_INPUTS])
def test_a_bad_input_is_answered_in_one_sentence(
    bad: BadInput, tmp_path: Path, tell: Callable[..., None]
) -> None:
    said = bad.give(tmp_path)
    assert re.search(bad.said, said), said
    assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in said), said
    assert len(said) < 1000
    tell("bad inputs", bad.kind, bad.what, said.replace(str(tmp_path), "…"))


def test_the_table_is_as_long_as_it_says() -> None:
    assert len(BAD_INPUTS) >= 60
    assert len({(bad.kind, bad.what) for bad in BAD_INPUTS}) == len(BAD_INPUTS)
