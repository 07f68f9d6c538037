"""What readings say of problems, held against random sets of heads, and as Markdown tables.

Correlations are Spearman's, with length held fixed. What lies 2 standard deviations outside the
random sets in the first half of the problems is a candidate, and is confirmed where it does so on
the same side in the second half, Holm-adjusted over all that was compared. Not over the candidates
alone: the halves have different problems and the same heads, and heads that lie out by chance do so
in both.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from bench.attention_readings import Floats
from bench.random_head_sets import PARTS

LOOK_Z = 2.0
LEVEL = 0.05


def compare(
    reading: str,
    scores: Floats,
    names: Sequence[str],
    targets: Mapping[str, Floats],
    half: int,
) -> Iterator[dict[str, Any]]:
    """Returns a row a set and target: correlations on both halves, and where random sets lie."""
    halves = dict(zip(PARTS, (slice(0, half), slice(half, None)), strict=True))
    length = targets["length"]
    for target, wanted in targets.items():
        found = {
            part: np.array(
                [
                    partial_spearman(
                        row[of], wanted[of], None if target == "length" else length[of]
                    )
                    for row in scores
                ]
            )
            for part, of in halves.items()
        }
        for i, name in enumerate(names):
            if ":" in name:
                continue
            row: dict[str, Any] = {"reading": reading, "heads": name, "target": target}
            for part, values in found.items():
                row[part] = float(values[i])
                like = [j for j, other in enumerate(names) if other.startswith(f"{name}:{part}")]
                if like:
                    row[f"random_{part}"] = float(values[like].mean())
                    row[f"random_sd_{part}"] = float(values[like].std(ddof=1))
                    row[f"z_{part}"] = (row[part] - row[f"random_{part}"]) / max(
                        row[f"random_sd_{part}"], 1e-12
                    )
                    row[f"num_random_{part}"] = len(like)
            yield row


def partial_spearman(values: Floats, wanted: Floats, fixed: Floats | None) -> float:
    """Returns Spearman's correlation without what the ranks of `fixed`, and their squares, say."""
    ranks = [stats.rankdata(values), stats.rankdata(wanted)]
    if fixed is not None:
        of_fixed = stats.zscore(stats.rankdata(fixed))
        design = np.stack([np.ones_like(of_fixed), of_fixed, of_fixed**2], axis=1)
        ranks = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks]
    if min(np.ptp(r) for r in ranks) < 1e-9:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def confirm(rows: Sequence[dict[str, Any]]) -> None:
    """Says of every row whether it is a candidate by the first half, confirmed by the second."""
    for row in rows:
        row["is_candidate"] = row["is_confirmed"] = False
    # The set of all heads has no random sets like it to lie outside of.
    compared = [row for row in rows if row["target"] != "length" and row["heads"] != "all"]
    p_values = [_p_of_one_more(row) for row in compared]
    order = np.argsort(p_values, kind="stable")
    still = True
    for rank, i in enumerate(order):
        row, p_value = compared[i], p_values[i]
        still = still and p_value * (len(order) - rank) <= LEVEL
        is_candidate = abs(row["z_look"]) >= LOOK_Z
        same_side = row["z_look"] * row["z_confirm"] > 0
        row.update(
            is_candidate=bool(is_candidate),
            p_confirm=p_value,
            is_confirmed=bool(still and is_candidate and same_side),
        )


def _p_of_one_more(row: Mapping[str, Any]) -> float:
    """Returns the two-sided p-value that the chosen set is one more draw like the random ones.

    Their mean and their spread are both estimates, from as many sets as there were.
    """
    number = row["num_random_confirm"]
    z = abs(row["z_confirm"]) / np.sqrt(1 + 1 / number)
    return float(2 * stats.t.sf(z, df=number - 1))


# tables -------------------------------------------------------------------------------------------


def format_tables(result: Mapping[str, Any]) -> str:
    """Returns a Markdown table a set of heads: readings down, targets across.

    A cell has the correlation in both halves and, but for all heads, how many standard deviations
    it lies from those of the random sets; confirmed ones are bold.
    """
    rows = result["rows"]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = []
    for heads in dict.fromkeys(row["heads"] for row in rows):
        lines += [f"{SETS[heads]}:", "", "| reading | " + " | ".join(targets) + " |"]
        lines.append("|---|" + "---|" * len(targets))
        for reading in dict.fromkeys(row["reading"] for row in rows):
            found = {
                row["target"]: row
                for row in rows
                if (row["reading"], row["heads"]) == (reading, heads)
            }
            cells = [_format_cell(found[target]) for target in targets]
            lines.append(f"| `{reading}` | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


SETS = {
    "delta": "Heads that cost most on the probes",
    "specific": "Heads that cost more on the probes than on prose",
    "prose": "Heads that cost most on prose",
    "first_tokens": "Heads that cost most on the first tokens of the probes' responses",
    "later_tokens": "Heads that cost most on the later tokens of the probes' responses",
    "all": "All heads",
}


def _format_cell(row: Mapping[str, Any]) -> str:
    text = f"{row['look']:+.2f}, {row['confirm']:+.2f}"
    if "z_look" in row:
        text += f" (z {row['z_look']:+.1f}, {row['z_confirm']:+.1f})"
    return f"**{text}**" if row["is_confirmed"] else text
