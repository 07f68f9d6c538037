"""A lineage in, a picture of it out: what was made stands above what it was made from."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from circuitseer_assets.method.audit import Lineage
from circuitseer_assets.method.report_charts import svg_element
from circuitseer_assets.method.tables import printable
from circuitseer_assets.records import Artifact

_BOX_WIDTH, _BOX_HEIGHT, _GAP, _MARGIN, _DETOUR = 196, 74, 16, 6, 22
_LAYER = _BOX_HEIGHT + 34
_LINE_CHARACTERS, _FACT_LINES = 26, 2


@dataclass(frozen=True, slots=True)
class _Passage:
    """The place in a layer where the edge between two artifacts, far from each other, passes."""

    child: str
    parent: str


_Entry = str | _Passage


def draw_lineage(lineage: Lineage, facts: Mapping[str, str]) -> Markup:
    """Returns the chain of artifacts as boxes joined by lines, the newest on top.

    Args:
        lineage: what is drawn; a parent that is not recorded has a box of its own.
        facts: one short line for an artifact's box, by its id.
    """
    parents = {artifact.artifact_id: list(artifact.parents) for artifact in lineage.artifacts}
    parents |= {missing: [] for missing in lineage.missing}
    layers = _arrange(parents)
    width = max(_width(layer) for layer in layers) + 2 * _MARGIN
    places = _places(layers, width)
    by_id = {artifact.artifact_id: artifact for artifact in lineage.artifacts}
    lines = [
        _edge(child, parent, layers, places)
        for child, of_child in parents.items()
        for parent in of_child
    ]
    boxes = [
        _box(name, by_id.get(name), facts.get(name, ""), *places[name])
        for layer in layers
        for name in layer
        if isinstance(name, str)
    ]
    said = "; ".join(
        f"{child} was made from {' and '.join(of_child)}"
        for child, of_child in parents.items()
        if of_child
    )
    height = _LAYER * (len(layers) - 1) + _BOX_HEIGHT + 2 * _MARGIN
    return svg_element("Lineage", said, [*lines, *boxes], width=width, height=height)


def _arrange(parents: Mapping[str, Sequence[str]]) -> list[list[_Entry]]:
    """Returns the entries of every layer from left to right: each artifact below all made of it."""
    depth: dict[str, int] = {}

    def place(name: str, at: int) -> None:
        if at > depth.get(name, -1):
            depth[name] = at
            for parent in parents[name]:
                place(parent, at + 1)

    place(next(iter(parents)), 0)
    layers: list[list[_Entry]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, at in depth.items():
        layers[at].append(name)
    for child, of_child in parents.items():
        for parent in of_child:
            for at in range(depth[child] + 1, depth[parent]):
                layers[at].append(_Passage(child, parent))
    for above, layer in itertools.pairwise(layers):
        where = {entry: i / max(len(above) - 1, 1) for i, entry in enumerate(above)}
        layer.sort(key=lambda entry: (_middle(entry, where, parents), str(entry)))
    return layers


def _middle(
    entry: _Entry, above: Mapping[_Entry, float], parents: Mapping[str, Sequence[str]]
) -> float:
    """Returns where, on average, those stand in the layer above that the entry is joined to."""
    if isinstance(entry, _Passage):
        joined = [above[one] for one in (entry, entry.child) if one in above]
    else:
        joined = [
            at
            for one, at in above.items()
            if (one.parent == entry if isinstance(one, _Passage) else entry in parents[one])
        ]
    return sum(joined) / len(joined) if joined else 0.5


def _width(layer: Sequence[_Entry]) -> float:
    widths = [_BOX_WIDTH if isinstance(entry, str) else _DETOUR for entry in layer]
    return sum(widths) + _GAP * (len(layer) - 1)


def _places(layers: Sequence[Sequence[_Entry]], width: float) -> dict[_Entry, tuple[float, float]]:
    """Returns the middle of each entry's upper edge."""
    places: dict[_Entry, tuple[float, float]] = {}
    for i, layer in enumerate(layers):
        x = (width - _width(layer)) / 2
        for entry in layer:
            wide = _BOX_WIDTH if isinstance(entry, str) else _DETOUR
            places[entry] = (x + wide / 2, _MARGIN + _LAYER * i)
            x += wide + _GAP
    return places


def _edge(
    child: str,
    parent: str,
    layers: Sequence[Sequence[_Entry]],
    places: Mapping[_Entry, tuple[float, float]],
) -> str:
    passing = [
        places[entry]
        for layer in layers
        for entry in layer
        if isinstance(entry, _Passage) and (entry.child, entry.parent) == (child, parent)
    ]
    x, y = places[child]
    path = [f"M{x:.1f} {y + _BOX_HEIGHT:.1f}"]
    y += _BOX_HEIGHT
    for to_x, top in [*passing, places[parent]]:
        bend = (y + top) / 2
        path.append(f"C{x:.1f} {bend:.1f} {to_x:.1f} {bend:.1f} {to_x:.1f} {top:.1f}")
        x, y = to_x, top
        if (to_x, top) in passing:
            y = top + _BOX_HEIGHT
            path.append(f"V{y:.1f}")
    return f'<path class="edge" d="{"".join(path)}"/>'


def _box(name: str, artifact: Artifact | None, fact: str, x: float, top: float) -> str:
    stage = artifact.stage if artifact else name.rpartition("-")[0] or name
    digest = name.removeprefix(f"{stage}-")
    left = x - _BOX_WIDTH / 2
    words: list[tuple[str, Any]] = [
        ("stage", stage.replace("_", " ")),
        ("digest", digest if artifact else f"{digest} (not recorded)"),
        *(("fact", line) for line in _wrap(fact)),
    ]
    texts = [
        f'<text class="{kind}" x="{left + 10:.1f}" y="{top + 18 + 16 * i:.1f}">'
        f"{escape(printable(text))}</text>"
        for i, (kind, text) in enumerate(words)
    ]
    return (
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{_BOX_WIDTH}" '
        f'height="{_BOX_HEIGHT}" rx="7"/>{"".join(texts)}'
    )


def _wrap(fact: str) -> list[str]:
    return textwrap.wrap(fact, _LINE_CHARACTERS, max_lines=_FACT_LINES, placeholder=" …")
