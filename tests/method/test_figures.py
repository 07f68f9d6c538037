"""Figures: what they show is what went in."""

import base64
import io
import math
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method import figures
from circuitseer_assets.method.figures import (
    colour_range,
    draw_head_heat_map,
    draw_loss_curve,
    draw_pass_at_1,
    draw_score_against_length,
    draw_score_histogram,
    spearman,
    to_markdown_image,
)
from circuitseer_assets.records import HeadImportance

from .conftest import head

MAX_BYTES = 120_000


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures drawn, in order, besides the bytes made from them."""
    kept = []
    to_bytes = figures.to_png

    def keep(figure):
        kept.append(figure)
        return to_bytes(figure)

    monkeypatch.setattr(figures, "to_png", keep)
    return kept


def realistic_heads(num_layers=30, num_heads=9, worst=1.08, p_holm=0.01) -> list[HeadImportance]:
    """Most heads near 0, a twentieth of them chosen: from 0.087 up to `worst`."""
    generator = np.random.default_rng(0)
    count = num_layers * num_heads
    k = math.floor(0.05 * count + 0.5)
    delta = generator.normal(0, 0.012, count)
    where = generator.choice(count, k, replace=False)
    delta[where] = [worst, *np.geomspace(0.44, 0.087, k - 1)][:k]
    return [
        head(i // num_heads, i % num_heads, float(delta[i]), chosen=c, p_holm=p_holm if c else None)
        for i in range(count)
        for c in [i in set(where.tolist())]
    ]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def texts_of(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


# Pictures -----------------------------------------------------------------------------------------


def some_figures() -> list[tuple[bytes, tuple[int, int]]]:
    generator = np.random.default_rng(1)
    lengths = generator.integers(20, 900, 5000)
    scores = generator.gamma(9, 0.02, 5000) / lengths
    few = slice(0, 300)
    steps = range(1, 1001)
    losses = generator.gamma(9, 0.1, 1000)
    return [
        (draw_head_heat_map(realistic_heads(), 30, 9), (960, 519)),
        (draw_head_heat_map(realistic_heads(6, 8), 6, 8), (960, 487)),
        (draw_head_heat_map(realistic_heads(28, 28), 28, 28), (960, 948)),
        (draw_score_histogram(scores, scores[few]), (960, 468)),
        (draw_score_against_length(lengths, scores, -0.9), (960, 528)),
        (draw_score_against_length(lengths[few], scores[few], -0.9), (960, 528)),
        (draw_loss_curve(steps, losses), (960, 432)),
        (draw_pass_at_1([("gsm8k", "base model", 0.3, 0.2, 0.4)]), (960, 288)),
    ]


def test_figures_are_small_opaque_png_of_the_size_asked_for() -> None:
    for png, size in some_figures():
        image = Image.open(io.BytesIO(png))
        image.load()
        assert image.format == "PNG"
        assert image.size == size
        assert len(png) < MAX_BYTES
        assert np.asarray(image.convert("RGBA"))[..., 3].min() == 255
        assert (pixels(png)[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        assert (pixels(png) < 128).any(axis=2).mean() > 0.005, "hardly anything is drawn"


def test_the_same_input_gives_the_same_bytes() -> None:
    rows = realistic_heads(6, 8)
    assert draw_head_heat_map(rows, 6, 8) == draw_head_heat_map(rows[::-1], 6, 8)
    assert draw_loss_curve([1, 2], [2.0, 1.0]) == draw_loss_curve([1, 2], [2.0, 1.0])


def test_importing_the_module_loads_no_plotting_library() -> None:
    heavy = ("matplotlib", "plotly", "scipy", "torch", "dagster")
    code = (
        "import sys, circuitseer_assets.method.figures as figures;"
        f"assert not set({heavy!r}) & set(sys.modules), sorted(sys.modules);"
        "figures.draw_loss_curve([1], [1.0]);"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_one_extreme_head_does_not_wash_out_the_rest() -> None:
    # One layer of heads costs 0.1 nats: its 1/30 of the map must be red whatever the worst costs.
    for worst in (0.2, 1.08, 100.0):
        rows = [
            head(layer, number, 0.1 if layer == 5 else 0.01 * (-1) ** (layer + number))
            for layer in range(30)
            for number in range(9)
        ]
        rows[0] = head(0, 0, worst)
        colours = pixels(draw_head_heat_map(rows, 30, 9))[70:430, 40:940]
        reddish = colours[..., 0] - colours[..., 2] > 40
        assert reddish.mean() > 0.8 * 1 / 30, worst


def test_colours_are_those_of_the_deltas(drawn) -> None:
    rows = realistic_heads()
    draw_head_heat_map(rows, 30, 9)
    mesh = drawn[0].axes[0].collections[0]
    shown = mesh.get_array()  # (head, layer)
    assert shown.shape == (9, 30)
    for row in rows:
        assert shown[row.head.head, row.head.layer] == row.delta_loss_nats
    assert mesh.norm(0.0) == pytest.approx(0.5)
    assert mesh.norm.vmin == -mesh.norm.vmax == -1.08
    assert mesh.norm(0.087) > 0.7
    assert "logarithmic beyond ±0.02" in drawn[0].axes[1].get_ylabel()


def test_an_extreme_head_moves_the_limit_and_not_the_threshold() -> None:
    ordinary = [0.001 * i * (-1) ** i for i in range(1, 270)]
    threshold, limit = colour_range([*ordinary, 1.08])
    assert (threshold, limit) == (pytest.approx(0.3), 1.08)
    assert colour_range([*ordinary, 100.0]) == (threshold, 100.0)
    assert colour_range([*ordinary, -100.0]) == (threshold, 100.0)


def test_colours_are_linear_where_nothing_is_extreme(drawn) -> None:
    assert colour_range([0.02, -0.03, 0.025]) == (0.03, 0.03)
    draw_head_heat_map([head(0, i, 0.01 * (i - 1)) for i in range(3)], 1, 3)
    assert drawn[0].axes[1].get_ylabel() == "rise of the loss (nats a token)"
    norm = drawn[0].axes[0].collections[0].norm
    assert norm(0.005) == pytest.approx(0.75)


def test_chosen_heads_are_outlined_and_dashed_when_unconfirmed(drawn) -> None:
    rows = [
        head(0, 0, 0.5, chosen=True, p_holm=0.05),
        head(2, 1, 0.4, chosen=True, p_holm=0.051),
        head(1, 1, 0.3, chosen=True),
        head(1, 0, 0.2),
    ]
    draw_head_heat_map(rows, 3, 2)
    outlines = {
        tuple(
            np.round([box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2], 6)
        ): (box.get_linestyle())
        for box in drawn[0].axes[0].patches
    }
    assert outlines.keys() == {(0, 0), (2, 1), (1, 1)}
    assert outlines[0, 0] == "-"
    assert outlines[2, 1] == outlines[1, 1] != "-"
    assert "layer 0, head 0 costs most: 0.5 nats a token" in texts_of(drawn[0])
    assert "3 of 6 heads chosen, 1 of them confirmed" in texts_of(drawn[0])
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["chosen, confirmed on fresh probes", "chosen, not confirmed", "not measured"]


def test_the_title_does_not_claim_a_cost_that_is_none(drawn) -> None:
    draw_head_heat_map([head(0, 0, 0.0), head(0, 1, -0.1)], 1, 2)
    assert "No head's ablation raises the loss" in texts_of(drawn[0])


def test_histograms_count_every_sample_on_a_scale_that_fits(drawn) -> None:
    generator = np.random.default_rng(2)
    narrow, wide = generator.uniform(1, 2, 500), generator.lognormal(-9, 1.5, 500)
    for pool, scale in ((narrow, "linear"), (wide, "log"), (wide - wide.min(), "linear")):
        draw_score_histogram(pool, pool[:50])
        axes = drawn[-1].axes[0]
        assert axes.get_xscale() == scale
        for stairs in axes.patches:
            assert stairs.get_data().values.sum() == pytest.approx(100)
        assert "500 samples" in axes.get_legend().get_texts()[0].get_text()


def test_the_histogram_title_compares_medians(drawn) -> None:
    draw_score_histogram([1.0, 2.0, 3.0], [3.0])
    assert texts_of(drawn[0]).startswith("Median score: 3 in the subset, 2 in the pool (1.5 times)")
    draw_score_histogram([-1.0, 0.0, 1.0], [1.0])
    assert texts_of(drawn[1]).startswith("Median score: 1 in the subset, 0 in the pool\n")


@pytest.mark.parametrize(
    ("correlation", "words"),
    [
        (-0.95, "falls strongly with length: rank correlation \N{MINUS SIGN}0.95"),
        (0.37, "rises with length: rank correlation +0.37"),
        (0.05, "hardly depends on length: rank correlation +0.05"),
    ],
)
def test_the_title_says_how_the_score_depends_on_length(drawn, correlation, words) -> None:
    draw_score_against_length([10, 20, 30], [1.0, 2.0, 3.0], correlation)
    assert words in texts_of(drawn[0])
    assert drawn[0].axes[0].get_xlabel() == "prompt length (tokens)"


def test_every_sample_is_a_point_or_in_a_hexagon(drawn) -> None:
    generator = np.random.default_rng(3)
    for count in (2000, 2001):
        lengths = generator.integers(10, 500, count)
        scores = generator.uniform(0.5, 1, count)
        in_subset = [i < 100 for i in range(count)]
        draw_score_against_length(lengths, scores, 0.0, in_subset)
    points, hexagons = (figure.axes[0].collections for figure in drawn)
    assert [len(group.get_offsets()) for group in points] == [1900, 100]
    assert hexagons[0].get_array().sum() == 2001


def test_loss_curves_say_whether_the_loss_fell(drawn) -> None:
    draw_loss_curve(range(1, 101), np.linspace(2, 1, 100))
    assert "fell from 1.95 to 1.05 nats a token" in texts_of(drawn[0])
    assert "first and the last 10 of 100 steps" in texts_of(drawn[0])
    smooth = drawn[0].axes[0].lines[1]
    assert smooth.get_ydata() == pytest.approx(2 - (smooth.get_xdata() - 1) / 99)
    draw_loss_curve([1, 2, 3], [1.0, 1.5, 1.25])
    assert "did not fall: from 1 to 1.25" in texts_of(drawn[1])


def test_pass_at_1_shows_values_intervals_and_doubts(drawn) -> None:
    draw_pass_at_1(
        [
            ("gsm8k", "base", 0.50, 0.48, 0.52),
            ("gsm8k", "checkpoint", 0.60, 0.58, 0.62),
            ("aime24", "base", 0.0, -1e-12, 0.11),
            ("aime24", "checkpoint", 0.1, 0.02, 0.25),
        ]
    )
    figure = drawn[0]
    assert "Pass@1: 25.0 % before, 35.0 % after (+10.0 points)" in texts_of(figure)
    assert "mean of 2 tasks" in texts_of(figure)
    assert "not evidence on 1 of 2 tasks: intervals reach ±15 points" in texts_of(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["50.0 %", "0.0 %", "60.0 %", "10.0 %"]
    ends = {
        tuple(path.vertices[:, 0]) for bars in axes.collections[::2] for path in bars.get_paths()
    }
    assert ends == {(0.48, 0.52), (0.58, 0.62), (-1e-12, 0.11), (0.02, 0.25)}


def test_names_are_shown_as_they_are(drawn) -> None:
    name = r"$\frac{1$ a_b ^ %"
    draw_pass_at_1([(name, name, 0.5, 0.49, 0.51)])
    assert drawn[0].axes[0].get_yticklabels()[0].get_text() == name
    assert drawn[0].legends[0].get_texts()[0].get_text() == name


def test_degenerate_inputs_are_drawn() -> None:
    many = [1.0] * 2500
    for png in (
        draw_head_heat_map([head(0, 0, 0.0)], 1, 1),
        draw_score_histogram([0.25] * 10, [0.25]),
        draw_score_against_length([5], [0.1], 0.0),
        draw_score_against_length(many, many, 0.0),
        draw_loss_curve([1], [2.0]),
        draw_pass_at_1([("a", "b", 0.0, 0.0, 0.0), ("a", "c", 1.0, 1.0, 1.0)]),
    ):
        assert pixels(png).ndim == 3


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: draw_head_heat_map([], 1, 1),
            "importance must hold at least one number, got none",
        ),
        (
            lambda: draw_head_heat_map([head(2, 0, 0.1)], 2, 2),
            "importance must name heads of a model of 2 layers with 2 heads each, got 2.0",
        ),
        (
            lambda: draw_head_heat_map([head(0, 1, 0.1)] * 2, 2, 2),
            "importance must name each head once, got 0.1 twice",
        ),
        (lambda: draw_score_histogram([1.0], []), "subset_scores must hold at least one number"),
        (
            lambda: draw_score_histogram([1.0, math.nan], [1.0]),
            "pool_scores must hold finite numbers, got nan at 1",
        ),
        (
            lambda: draw_score_against_length([1, 2], [1.0], 0.0),
            "lengths and scores must be of one length, got 2 and 1",
        ),
        (
            lambda: draw_score_against_length([1, 2], [1.0, 2.0], 0.0, [True]),
            "lengths and in_subset must be of one length, got 2 and 1",
        ),
        (lambda: draw_loss_curve([1], [math.inf]), "losses must hold finite numbers, got inf at 0"),
        (lambda: draw_pass_at_1([]), "summaries must hold at least one Pass@1, got none"),
        (
            lambda: draw_pass_at_1([("gsm8k", "base", 0.5, 0.6, 0.7)]),
            "Pass@1 of base on gsm8k must lie inside its interval, between 0 and 1, got 0.5",
        ),
        (
            lambda: draw_pass_at_1([("gsm8k", "base", math.nan, 0.6, 0.7)]),
            "Pass@1 of base on gsm8k must lie inside its interval",
        ),
        (
            lambda: draw_pass_at_1([("gsm8k", "base", 0.5, 0.4, 0.6)] * 2),
            "summaries must name base on gsm8k once, got it twice",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_sentence(draw, message) -> None:
    with pytest.raises(CircuitSeerError, match=re.escape(message)):
        draw()


def test_a_markdown_image_carries_its_bytes() -> None:
    png = draw_loss_curve([1, 2], [2.0, 1.0])
    markdown = to_markdown_image(png, "loss [of](http://a.example) the run")
    (image,) = MarkdownIt("commonmark").parseInline(markdown)[0].children or []
    assert image.type == "image"
    kind, data = str(image.attrs["src"]).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == png
    assert image.content.startswith("loss ")


# Rank correlation ---------------------------------------------------------------------------------


def brute_force_spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation of mid-ranks, each rank counted out."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [
            sum(other < value for other in values)
            + (sum(other == value for other in values) + 1) / 2
            for value in values
        ]

    first, second = ranks(x), ranks(y)
    middle = (len(x) + 1) / 2
    products = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    squares = [sum((rank - middle) ** 2 for rank in each) for each in (first, second)]
    return products / math.sqrt(squares[0] * squares[1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_spearman_equals_its_definition(pairs) -> None:
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        with pytest.raises(CircuitSeerError, match="at least two different numbers"):
            spearman(x, y)
    else:
        assert spearman(x, y) == pytest.approx(brute_force_spearman(x, y))


def test_a_rank_correlation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        CircuitSeerError, match=r"y must hold .* different numbers .* got 3 times 2"
    ):
        spearman([1, 2, 3], [2, 2, 2])
    with pytest.raises(CircuitSeerError, match="x and y must be of one length, got 2 and 1"):
        spearman([1, 2], [1])
    with pytest.raises(CircuitSeerError, match="y must hold finite numbers, got nan at 1"):
        spearman([1, 2], [1, math.nan])
