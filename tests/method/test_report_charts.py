"""The charts: well-formed, told in words as well, and as large as the numbers they show."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.lineage_picture import draw_lineage
from circuitseer_assets.method.report_charts import (
    MAX_POINTS,
    draw_against_random,
    draw_histogram,
    draw_intervals,
    draw_scatter,
    thinning_of,
)
from tests.reports import HOSTILE, make_lineage

SCORES = [0.001 * (i + 1) ** 2 for i in range(60)]


def parse(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    title, said = root.findtext("title"), root.findtext("desc")
    assert root.get("role") == "img"
    assert title
    assert root.get("aria-label") == f"{title}. {said}"
    return root


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in root.iter() if name in (one.get("class") or "").split()]


def axis(root: ET.Element, anchor: str, at: str) -> tuple[float, float]:
    """Returns the picture's units a number of an axis is, and where 0 lies, from its ticks."""
    ticks = [
        (float((t.text or "").replace("\N{MINUS SIGN}", "-")), float(t.get(at) or 0))
        for t in of_class(root, "tick")
        if t.get("text-anchor") == anchor
    ]
    (first, start), (last, stop) = ticks[0], ticks[-1]
    unit = (stop - start) / (last - first)
    return unit, start - first * unit


@pytest.mark.parametrize("scores", [SCORES, [5.0] * 7, [-1.0, 0.0, 3.0], [1e-9, 1e-3, 1e4]])
def test_the_bars_show_shares_that_sum_to_all_samples(scores: list[float]) -> None:
    root = parse(draw_histogram(scores, scores[:3], "score"))
    unit, _ = axis(root, "end", "y")
    shares = [float(bar.get("height") or 0) / -unit for bar in of_class(root, "pool")]
    assert sum(shares) == pytest.approx(100, abs=0.7)
    for share in shares:
        number = share * len(scores) / 100
        assert number == pytest.approx(round(number), abs=0.05)


def test_medians_stand_where_the_axis_says() -> None:
    root = parse(draw_histogram([0.0, 1.0, 2.0, 3.0, 10.0], [1.0, 1.0], "score"))
    marks = [float(line.get("x1") or 0) for line in of_class(root, "median")]
    unit, zero = axis(root, "middle", "x")
    assert marks == pytest.approx([zero + 2 * unit, zero + unit], abs=0.2)


def test_every_sample_of_a_small_pool_is_a_dot_and_a_large_one_is_thinned() -> None:
    def draw(number: int) -> ET.Element:
        lengths, scores = list(range(number)), [float(i + 1) for i in range(number)]
        return parse(draw_scatter(lengths, scores, [i % 4 == 0 for i in range(number)], "said"))

    small = draw(100)
    assert len(of_class(small, "pool-dot")) == 75
    assert len(of_class(small, "subset-dot")) == 25
    large = draw(4 * MAX_POINTS)
    assert len(of_class(large, "pool-dot")) == MAX_POINTS
    assert len(of_class(large, "subset-dot")) == MAX_POINTS  # all of them: what was drawn matters


def test_a_thinned_scatter_is_said_to_be() -> None:
    assert thinning_of([True] * 10 + [False] * MAX_POINTS) == ""
    assert thinning_of([True] * 10 + [False] * (3 * MAX_POINTS)) == "Shown: one in 3 of the others."
    both = [True] * (2 * MAX_POINTS) + [False] * (5 * MAX_POINTS)
    assert thinning_of(both) == "Shown: one in 5 of the others and one in 2 of the drawn samples."


def test_an_interval_reaches_as_far_as_it_is_and_names_are_escaped() -> None:
    rows = [(HOSTILE, 0.5, 0.4, 0.7, "before"), ("b", 0.6, 0.5, 0.9, "after")]
    svg = draw_intervals(rows, "Pass@1 (%)", "said", percent=True)
    assert HOSTILE not in svg
    root = parse(svg)
    ends = [[float(w.get(x) or 0) for x in ("x1", "x2")] for w in of_class(root, "whisker")]
    dots = [float(d.get("cx") or 0) for d in of_class(root, "dot")]
    scale = (ends[1][1] - ends[0][0]) / 0.5
    assert dots[0] - ends[0][0] == pytest.approx(0.1 * scale, abs=0.2)
    assert dots[1] - dots[0] == pytest.approx(0.1 * scale, abs=0.2)
    assert [text.text for text in of_class(root, "row")] == [HOSTILE, "b"]


def test_the_random_draws_are_ticks_beside_the_mark() -> None:
    root = parse(draw_against_random(2.0, [0.1, 0.2, 0.15], "said"))
    ticks = [float(line.get("x1") or 0) for line in of_class(root, "tick-random")]
    [mark] = of_class(root, "diamond")
    at = float(re.match(r"M([\d.]+)", mark.get("d") or "")[1])  # type: ignore[index]
    assert ticks[0] < ticks[2] < ticks[1] < at


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(CircuitSeerError, match="subset must hold at least one value to be drawn"):
        draw_histogram([1.0], [], "score")


# lineage ------------------------------------------------------------------------------------------


def test_every_artifact_has_a_box_above_its_parents_and_no_two_overlap() -> None:
    lineage = make_lineage()
    root = parse(draw_lineage(lineage, {"head_ranking": f"2 heads: {HOSTILE}"}))
    boxes = [
        tuple(float(b.get(a) or 0) for a in ("x", "y", "width", "height"))
        for b in of_class(root, "box")
    ]
    names = [text.text for text in of_class(root, "digest")]
    assert sorted(names) == sorted(a.artifact_id for a in lineage.artifacts)
    where = dict(zip(names, boxes, strict=True))
    for artifact in lineage.artifacts:
        for parent in artifact.parents:
            assert where[parent][1] > where[artifact.artifact_id][1] + where[parent][3]
    width = float((root.get("viewBox") or "").split()[2])
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert x + w <= width
        for a, b, c, d in boxes[i + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
    num_edges = sum(len(artifact.parents) for artifact in lineage.artifacts)
    assert len(of_class(root, "edge")) == num_edges


def test_an_edge_past_a_layer_goes_through_no_box() -> None:
    root = parse(draw_lineage(make_lineage(), {}))
    boxes = [
        tuple(float(b.get(a) or 0) for a in ("x", "y", "width", "height"))
        for b in of_class(root, "box")
    ]
    for edge in of_class(root, "edge"):
        path = edge.get("d") or ""
        # Where a layer is passed, the path goes straight down: "... x y V bottom".
        for x, y, bottom in re.findall(r"([\d.]+) ([\d.]+)V([\d.]+)", path):
            for left, top, width, height in boxes:
                beside = not left <= float(x) <= left + width
                assert beside or float(bottom) <= top or float(y) >= top + height


def test_a_parent_that_is_not_recorded_has_a_box_that_says_so() -> None:
    lineage = make_lineage()
    *others, corpus = lineage.artifacts
    broken = replace(lineage, artifacts=tuple(others), missing=(corpus.artifact_id,))
    root = parse(draw_lineage(broken, {}))
    assert "corpus (not recorded)" in [text.text for text in of_class(root, "digest")]
