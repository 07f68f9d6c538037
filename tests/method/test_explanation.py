"""One sample's explanation in a terminal and as JSON: nothing lost, nothing taken for markup."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from circuitseer_assets.method.explanation import (
    Explanation,
    ReadTokens,
    Token,
    explanation_as_json,
    format_explanation,
    shades_of,
    times_even,
    top_tokens,
)
from tests.reports import make_explanation


def printed(explanation: Explanation, **options: object) -> str:
    file = io.StringIO()
    console = Console(file=file, width=200, **options)  # type: ignore[arg-type]
    console.print(format_explanation(explanation))
    return file.getvalue()


def test_shades_order_the_tokens_and_the_most_attended_is_darkest() -> None:
    read = make_explanation().read
    assert read is not None
    shades = shades_of(read)
    assert shades[0] == 0
    assert shades == sorted(shades)
    assert shades[-1] == 1
    # The shade's square is the share of the most that one has.
    assert shades[2] ** 2 == pytest.approx(2 / 8)


def test_the_top_tokens_are_those_that_receive_most_however_even_attention_would_be() -> None:
    read = make_explanation().read
    assert read is not None
    top = top_tokens(read, 3)
    assert [i for i, _ in top] == [8, 7, 6]
    assert times_even(read)[8] == pytest.approx(8 / 36 * 8)
    assert sum(times_even(read)) / 8 == pytest.approx(1)
    assert times_even(replace(read, is_lift=True))[8] == top[0][1].received


def test_the_text_holds_the_prompt_as_it_is() -> None:
    tokens = (Token("[bold]a[/bold]", 0.75, 0.5), Token("[/red]", 0.25, 0.5))
    explanation = replace(make_explanation(), read=ReadTokens(tokens, 0.0625, is_score=True))
    text = printed(explanation)
    assert "[bold]a[/bold][/red]" in text
    assert "rank" in text
    assert "1 of 120" in text
    assert "40.0 %" in text


def test_colours_go_to_terminals_only() -> None:
    assert "\x1b[" not in printed(make_explanation())
    assert "48;2;245;150;30" in printed(
        make_explanation(), force_terminal=True, color_system="truecolor"
    )


def test_json_holds_every_figure_in_full() -> None:
    explanation = make_explanation()
    values = json.loads(json.dumps(explanation_as_json(explanation)))
    assert explanation.read is not None
    assert [t["received"] for t in values["read"]["tokens"]] == [
        t.received for t in explanation.read.tokens
    ]
    assert values["standing"]["score"] == explanation.standing.score  # type: ignore[union-attr]
    assert values["place"]["inclusion_probability"] == 0.4


def test_a_row_that_was_never_read_says_why() -> None:
    text = printed(replace(make_explanation(), read=None, standing=None, place=None, unread="Why."))
    assert text.rstrip().endswith("Why.")
    assert "rank" not in text
