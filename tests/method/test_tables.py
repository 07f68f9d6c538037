"""Tables: what they show is what went in, and no text gets out of its cell."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.tables import (
    escape_text,
    format_heads_table,
    format_samples_table,
)

from .conftest import head

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def cells_of(table: str) -> list[list[str]]:
    """The text of each cell of a Markdown table, read by another library."""
    rows: list[list[str]] = []
    for token in MARKDOWN.parse(table):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 2:
            rows[-1].append(text_of(token))
    return rows


def text_of(inline: Token) -> str:
    """The text of a Markdown paragraph or cell that must hold nothing but text."""
    tokens = inline.children or []
    assert {token.type for token in tokens} <= {"text", "text_special"}
    return "".join(token.content for token in tokens)


# Tables -------------------------------------------------------------------------------------------


def test_the_heads_table_holds_the_chosen_heads_and_their_evidence() -> None:
    evidence = {"confirmed_delta_nats": 0.31, "ci_low": -0.02, "ci_high": 0.64}
    rows = [
        head(3, 1, 0.25, chosen=True),
        head(18, 8, 1.08, chosen=True, p_holm=0.0004, delta_control_nats=-0.5, **evidence),
        head(1, 1, 0.4),
    ]
    minus = "\N{MINUS SIGN}"
    assert cells_of(format_heads_table(rows))[1:] == [
        [
            *("18.8", "+1.0800", f"+0.3100 ({minus}0.0200 to +0.6400)"),
            *("0.0004", f"{minus}0.5000", "yes"),
        ],
        ["3.1", "+0.2500", "not tested", "not tested", "not tested", "no"],
    ]


def test_a_heads_table_without_a_chosen_head_is_refused() -> None:
    with pytest.raises(CircuitSeerError, match="at least one chosen head, got none among 1"):
        format_heads_table([head(0, 0, 0.1)])


def test_the_samples_table_shows_both_ends_and_the_gap() -> None:
    rows = [
        (1, "a1", 0.00032, 57, "first | row\nof <b>two</b> lines"),
        (2, "b2", 0.5, 58, "second"),
        (1200, "c3", 0.0, 4321, "last"),
    ]
    header, *body = cells_of(format_samples_table(rows))
    assert header == ["rank", "score", "tokens", "text", "sample"]
    assert body == [
        ["1", "3.2\N{MULTIPLICATION SIGN}10⁻⁴", "57", "first | row of <b>two</b> lines", "a1"],
        ["2", "0.5", "58", "second", "b2"],
        ["…", "", "", "", ""],
        ["1,200", "0", "4,321", "last", "c3"],
    ]


# Text ---------------------------------------------------------------------------------------------


HOSTILE = [
    "a | b |\n|---|---|\n| c | d",
    "# heading",
    "1. list",
    "- list\n+ list\n* list",
    "==========",
    "> quote",
    "    code",
    "```\ncode\n```",
    "`code` **bold** __bold__ *a* _b_ ~~c~~",
    "<img src=x onerror=alert(1)><!-- --><script>alert(1)</script>",
    "&lt;b&gt; &#42; &copy;",
    "![x](http://a.example/x.png) [x](javascript:alert(1)) [x]: http://a.example",
    "http://a.example https://a.example HTTPS://a.example www.a.example a@b.example",
    "<http://a.example> <a@b.example>",
    "\x1b[31mred\x1b[0m \x1b]8;;http://a.example\x07link\x1b]8;;\x07 \x9b31m \x00 \x07",
    "price \u202egnp.exe\u202c \u2066x\u2069 \u200e\u200f\u061c \u200b\ufeff",
    "\u2028line\u2029paragraph\x85next\x0bvertical\x0cform\r\nreturn",
    "\\| \\\\| \\` \\<b>",
    "$x^2$ and $$y$$",
    "\ud800 lone surrogate",
    "",
]


def shown_characters(text: str) -> str:
    """What `escape_text` promises to show, from its definition."""
    kept = []
    for character in " ".join(text.split()):
        category = unicodedata.category(character)
        if category in ("Cc", "Cs"):
            kept.append("\N{REPLACEMENT CHARACTER}")
        elif category != "Cf":
            kept.append(character)
    return "".join(kept).strip()


def assert_inert(text: str) -> None:
    escaped = escape_text(text)
    escaped.encode()
    assert "\n" not in escaped
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in escaped)
    assert {c for c in escaped if unicodedata.category(c) == "Cf"} <= {"\N{WORD JOINER}"}

    cells = cells_of(f"| a | b |\n|---|---|\n| {escaped} | end |\n")
    assert len(cells) == 2
    inside, after = cells[1]
    assert after == "end"
    assert inside.replace("\N{WORD JOINER}", "") == shown_characters(text)
    # Renderers of GitHub's dialect look for bare addresses in the text that is left.
    assert not re.search(r"https?://|www\.\S|[\w.+-]@[\w-]", inside, re.IGNORECASE)

    kinds = [token.type for token in MARKDOWN.parse(f"{escaped}\n")]
    assert kinds in (["paragraph_open", "inline", "paragraph_close"], [])
    under_a_line = [token.type for token in MARKDOWN.parse(f"line\n{escaped}\n")]
    assert under_a_line == ["paragraph_open", "inline", "paragraph_close"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(text) -> None:
    assert_inert(text)


@settings(deadline=None)
@given(
    st.text(alphabet=st.sampled_from("ab1 .)|\\`*_[]()<>&#~!$-+=:/@w;\n\x1b\u202e"), max_size=40)
)
def test_any_mixture_of_markup_is_inert(text) -> None:
    assert_inert(text)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_inert(text) -> None:
    assert_inert(text)


def test_plain_text_stays_readable() -> None:
    text = "Ada has 12 apples; she eats 1/3 of them (4), so 12-4=8 are left: 8."
    assert escape_text(text) == text


def test_long_text_is_cut_at_a_word_and_says_its_size() -> None:
    assert escape_text("word " * 100, 22) == "word word word word… (500 characters)"
    assert escape_text("x" * 100, 10) == "xxxxxxxxxx… (100 characters)"
    assert escape_text("short", 5) == "short"
    assert escape_text("*" * 50, 3) == "&#42;" * 3 + "… (50 characters)"
