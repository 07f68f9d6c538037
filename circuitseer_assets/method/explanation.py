"""What is known of one sample out of a run: where it stands, why, and what the heads look at.

Records in, JSON values and text for a terminal out; the page of the same is in `report_page`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from circuitseer_assets.method.scorers import SCORERS
from circuitseer_assets.method.tables import format_number, printable

NUM_TOP_TOKENS = 8
# From paper to a strong amber, readable with black ink in every terminal.
_SHADES = ((255, 251, 240), (245, 150, 30))


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a prompt; `received` is None where the reading does not look at it."""

    text: str
    received: float | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """A sample's tokens with what each receives from the heads.

    `is_score` says that the score is taken of these numbers; `variance` is their weighted variance.
    """

    tokens: tuple[Token, ...]
    variance: float
    is_score: bool
    is_lift: bool = False

    @property
    def counted(self) -> list[Token]:
        """Those tokens that the reading looks at."""
        return [token for token in self.tokens if token.received is not None]


@dataclass(frozen=True, slots=True)
class Standing:
    """A sample's score among those of the pool; rank 1 is the highest."""

    score: float
    rank: int
    num_scored: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Place:
    """One sample's place in a draw.

    Attributes:
        sample_id: the sample's.
        order: 1 for the smallest key; None for a weight of 0, which is never drawn.
        weight, sampling_key: as the draw has them; the key is None for a weight of 0.
        inclusion_probability: given everybody else's keys: 1 - exp(-w tau), tau being the key that
            the last place would go for without this sample. Pareto sampling has its target, `top`
            0 or 1.
        is_drawn: whether it is one of the subset.
    """

    sample_id: str
    order: int | None
    weight: float
    sampling_key: float | None
    inclusion_probability: float
    is_drawn: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything known of one sample, as one subset's run has it.

    Attributes:
        sample_id: None for a quarantined row, which has no id.
        source, position: where the row comes from.
        status: `scored`, `unscored`, `quarantined`, `probe`, `contaminated` or `outside`.
        reason: one sentence on why it is that.
        subset_id, scorer, reading: the subset asked about, and what scored its pool.
        heads: those that the tokens are shaded by, and the score is of where its scorer uses any.
        standing: its score and rank, None where it has none.
        place: its place in the draw, None where it could not be drawn.
        subsets: all subsets that it is in, the newest first.
        read: its tokens, None where `unread` says why they were not read.
    """

    sample_id: str | None
    source: str
    position: int
    status: str
    reason: str
    subset_id: str
    scorer: str
    reading: str
    heads: tuple[str, ...]
    standing: Standing | None = None
    place: Place | None = None
    subsets: tuple[str, ...] = ()
    read: ReadTokens | None = None
    unread: str | None = None


def shades_of(read: ReadTokens) -> list[float]:
    """Returns how dark each token is shown, 0 to 1: the root of its share of the most one has."""
    received = [max(token.received or 0.0, 0.0) for token in read.tokens]
    most = max(received, default=0.0)
    return [math.sqrt(value / most) if most > 0 else 0.0 for value in received]


def top_tokens(read: ReadTokens, count: int = NUM_TOP_TOKENS) -> list[tuple[int, Token]]:
    """Returns the tokens that receive most, with their positions, the most first."""
    counted = [(i, token) for i, token in enumerate(read.tokens) if token.received is not None]
    return sorted(counted, key=lambda pair: (-(pair[1].received or 0.0), pair[0]))[:count]


def times_even(read: ReadTokens) -> list[float]:
    """Returns how many times what even attention would give each token receives."""
    even = 1.0 if read.is_lift else 1 / max(len(read.counted), 1)
    return [(token.received or 0.0) / even for token in read.tokens]


def explanation_as_json(explanation: Explanation) -> dict[str, Any]:
    """Returns the explanation as plain JSON values, all figures in full."""
    return asdict(explanation)


# for a terminal -----------------------------------------------------------------------------------


def format_explanation(explanation: Explanation) -> RenderableType:
    """Returns the explanation as rich prints it: facts, the shaded prompt, what stands out."""
    facts = Table.grid(padding=(0, 2))
    for name, value in describe(explanation):
        facts.add_row(Text(name, style="bold"), Text(printable(value)))
    parts: list[RenderableType] = [facts, Text()]
    if explanation.read is None:
        return Group(*parts, Text(printable(explanation.unread or "")))
    return Group(*parts, _shaded(explanation.read), Text(), _top_table(explanation.read))


def describe(explanation: Explanation) -> list[tuple[str, str]]:
    """Returns the facts of an explanation as pairs of a name and a text, for people."""
    rows = [
        ("sample", explanation.sample_id or "none: the row was never a sample"),
        ("row", f"{explanation.source}:{explanation.position}"),
        ("status", f"{explanation.status}: {explanation.reason}"),
    ]
    if standing := explanation.standing:
        rows += [
            ("score", f"{format_number(standing.score)} ({scored_by(explanation)})"),
            ("rank", f"{standing.rank:,} of {standing.num_scored:,} (1 is the highest score)"),
        ]
    if place := explanation.place:
        rows.append(("draw", describe_place(place)))
    rows += [
        ("asked of", explanation.subset_id),
        ("in subsets", ", ".join(explanation.subsets) or "none"),
    ]
    if explanation.heads:
        scorer = SCORERS.get(explanation.scorer)
        name = "heads read" if scorer and scorer.uses_heads else "heads shown"
        rows.append((name, ", ".join(explanation.heads)))
    if explanation.read:
        rows.append(("tokens", describe_reading(explanation.read)))
    return rows


def scored_by(explanation: Explanation) -> str:
    """Returns what the score is, in a word or two."""
    if explanation.scorer != "attention":
        return f"scorer {explanation.scorer}"
    return f"reading {explanation.reading}"


def describe_place(place: Place) -> str:
    """Returns a sample's place in the draw as a sentence."""
    if place.order is None or place.sampling_key is None:
        return "weight 0: never drawn"
    drawn = "drawn" if place.is_drawn else "not drawn"
    return (
        f"{drawn}, number {place.order:,} by key {format_number(place.sampling_key)}; weight "
        f"{format_number(place.weight)}, inclusion probability "
        f"{100 * place.inclusion_probability:.1f} %"
    )


def describe_reading(read: ReadTokens) -> str:
    """Returns what the shown numbers are, and what they have to do with the score."""
    number = len(read.counted)
    said = f"{number} of {len(read.tokens)} looked at; the variance of what they receive is "
    said += format_number(read.variance)
    return said + (
        ", which its score is taken of" if read.is_score else "; its score is not taken of these"
    )


def _shaded(read: ReadTokens) -> Text:
    shown = Text()
    for token, dark in zip(read.tokens, shades_of(read), strict=True):
        if token.received is None:
            shown.append(printable(token.text), style="dim")
            continue
        red, green, blue = (round(a + (b - a) * dark) for a, b in zip(*_SHADES, strict=True))
        shown.append(printable(token.text), style=f"black on #{red:02x}{green:02x}{blue:02x}")
    return shown


def _top_table(read: ReadTokens) -> Table:
    table = Table(title="tokens that receive most", title_justify="left", box=None)
    for name in ("at", "token", "received", "times even"):
        table.add_column(name, justify="left" if name == "token" else "right")
    times = times_even(read)
    for i, token in top_tokens(read):
        row = (str(i), repr(token.text), format_number(token.received or 0.0), f"{times[i]:.1f}")
        table.add_row(*(Text(cell) for cell in row))
    return table
