"""What all figures share: paper, ink, the finding above the picture, and the PNG."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, BLANK = "#24292f", "#667079", "#e6e8eb", "#c9ced3"
GREY, BLUE, RED = "#98a2ac", "#2b6cb0", "#c23b22"
_DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """Returns a white figure of so many inches, and its axes with a light grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(size=9.5, color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    return figure, axes


def say(figure: "Figure", finding: str, detail: str = "") -> None:
    """Writes the finding, and the detail in grey below it, above everything else."""
    height = 72 * figure.get_figheight()  # in points
    band = (46 if detail else 30) / height
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - band), w_pad=0.1)
    figure.text(0.012, 1 - 9 / height, finding, va="top", fontsize=12, weight="bold", color=INK)
    figure.text(0.012, 1 - 29 / height, detail, va="top", fontsize=9.5, color=MUTED)


def to_png(figure: "Figure") -> bytes:
    """Returns the figure as a PNG; the same figure gives the same bytes."""
    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        if legend is not None:
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set(fontsize=9, color=INK, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue()
