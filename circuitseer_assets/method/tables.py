"""Tables of records as Markdown, and the escaping that any text from a corpus must pass first."""

import re
import unicodedata
from collections.abc import Sequence

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.records import CONFIRMATION_LEVEL, HeadImportance

SampleRow = tuple[int, str, float, int, str]
"""Rank, sample id, score, number of tokens and text of one sample."""


# Tables -------------------------------------------------------------------------------------------


def format_heads_table(importance: Sequence[HeadImportance]) -> str:
    """Returns a Markdown table of the chosen heads, the costliest first, with their evidence.

    Raises:
        CircuitSeerError: no head is chosen.
    """
    chosen = [row for row in importance if row.is_reasoning_head]
    if not chosen:
        raise CircuitSeerError(
            f"importance must hold at least one chosen head, got none among {len(importance)}"
        )
    lines = []
    for row in sorted(chosen, key=lambda row: (-row.delta_loss_nats, row.head)):
        confirmed = "not tested"
        if row.confirmed_delta_nats is not None:
            confirmed = (
                f"{format_signed(row.confirmed_delta_nats, 4)} "
                f"({format_signed(row.ci_low, 4)} to {format_signed(row.ci_high, 4)})"
            )
        control = row.delta_control_nats
        cells = (
            str(row.head),
            format_signed(row.delta_loss_nats, 4),
            confirmed,
            "not tested" if row.p_holm is None else f"{row.p_holm:.2g}",
            "not tested" if control is None else format_signed(control, 4),
            "yes" if is_confirmed(row) else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        (
            "| layer.head | loss rise | on fresh probes (95 % interval) | Holm p "
            "| on control texts | confirmed |",
            "|---|---:|---:|---:|---:|---|",
            *lines,
            "",
            "Rise of the loss when the head is ablated, in nats a token.",
        )
    )


def format_samples_table(rows: Sequence[SampleRow], *, max_characters: int = 240) -> str:
    """Returns a Markdown table of samples with the beginning of their text.

    Where ranks skip, as between the highest and the lowest, a row of dots says so.
    """
    lines = []
    last_rank = None
    for rank, sample_id, score, num_tokens, text in rows:
        if last_rank is not None and abs(rank - last_rank) > 1:
            lines.append("| … | | | | |")
        last_rank = rank
        shown = escape_text(text, max_characters)
        cells = (
            f"{rank:,}",
            format_number(score),
            f"{num_tokens:,}",
            shown,
            escape_text(sample_id),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        ("| rank | score | tokens | text | sample |", "|---:|---:|---:|---|---|", *lines)
    )


# Text ---------------------------------------------------------------------------------------------


def escape_text(text: str, max_characters: int | None = None) -> str:
    """Returns `text` as one line of Markdown that shows just its characters.

    What could be markup becomes a character reference, which Markdown never reads as structure,
    inside a table or out. Control codes show as U+FFFD; format characters (direction marks,
    zero-width and tag characters) are left out. A word joiner keeps addresses from turning into
    links. Longer texts are cut before escaping, at a word where one ends near, and say their size.
    """
    line = " ".join(text.split())
    ending = ""
    if max_characters is not None and len(line) > max_characters:
        ending = f"… ({len(text):,} characters)"
        head = line[:max_characters]
        at_word = head.rfind(" ")
        line = head[:at_word] if at_word > max_characters * 0.8 else head
    shown = "".join(map(_visible, line)).strip()
    shown = _ADDRESS.sub("\\g<0>\N{WORD JOINER}", shown)
    return _BLOCK_START.sub(_reference, _MARKUP.sub(_reference, shown)) + ending


def printable(text: str) -> str:
    """Returns `text` with whatever a terminal would obey spelled as an escape; lines stay lines."""
    return "".join(
        letter.encode("unicode_escape").decode() if is_obeyed(letter) else letter for letter in text
    )


def is_obeyed(letter: str) -> bool:
    """Returns whether a terminal or a browser would obey the character instead of showing it.

    Those are control codes but the line feed, direction marks and other characters without width.
    """
    return letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf", "Cs")


_MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")
_BLOCK_START = re.compile(r"^(?:[-+=:#]|\d+[.)])")
_ADDRESS = re.compile(r":(?=//)|@|www(?=\.)", re.IGNORECASE)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return "\N{REPLACEMENT CHARACTER}" if category in ("Cc", "Cs") else character


def _reference(match: re.Match[str]) -> str:
    return f"{match[0][:-1]}&#{ord(match[0][-1])};"


# Numbers ------------------------------------------------------------------------------------------


def is_confirmed(row: HeadImportance) -> bool:
    """Returns whether a chosen head costs loss on fresh probes as well."""
    return row.p_holm is not None and row.p_holm <= CONFIRMATION_LEVEL


def format_number(value: float) -> str:
    """Returns `value` with three significant digits, as people write it."""
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}" if size < 1e6 else f"{value:.2e}"
    elif size >= 0.001 or size == 0:
        text = f"{value:.3g}"
    else:
        text = f"{value:.2e}"
    if "e" in text:
        digits, exponent = text.split("e")
        superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        digits = digits.rstrip("0").rstrip(".")
        text = f"{digits}\N{MULTIPLICATION SIGN}10{superscript}"
    return text.replace("-", "\N{MINUS SIGN}")


def format_signed(value: float, digits: int = 2) -> str:
    """Returns `value` with its sign and so many digits after the point."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
