"""Comparing two subsets: their heads, their samples and why, their scores, their settings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from circuitseer_assets.method.figures import spearman
from circuitseer_assets.method.subset_changes import Draw, SubsetChanges, explain_changes
from circuitseer_assets.method.verification import different_settings
from circuitseer_assets.records import HeadId
from circuitseer_assets.settings import SLICES
from jobs.lineage import read_lineage
from resources.home import Home
from resources.subset_chain import SubsetChain


@dataclass(frozen=True, slots=True)
class ScoreShift:
    """How the scores of the samples that both pools hold changed.

    `rank_correlation` is Spearman's; None where one side is constant or there are fewer than two.
    """

    num_samples: int
    num_changed: int
    mean_before: float | None
    mean_after: float | None
    rank_correlation: float | None


@dataclass(frozen=True, slots=True)
class SubsetDifference:
    """What lies between two subsets; of the settings the key, before and after."""

    before: str
    after: str
    heads_kept: tuple[HeadId, ...]
    heads_gained: tuple[HeadId, ...]
    heads_lost: tuple[HeadId, ...]
    changes: SubsetChanges
    shift: ScoreShift
    settings: tuple[tuple[str, Any, Any], ...]

    @property
    def is_same(self) -> bool:
        """Whether both hold the same samples by the same heads."""
        moved = (self.heads_gained, self.heads_lost, self.changes.added, self.changes.removed)
        return not any(moved)

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values, every sample with its reason."""
        return {
            "before": self.before,
            "after": self.after,
            "is_same": self.is_same,
            "heads": {
                "kept": [str(head) for head in self.heads_kept],
                "gained": [str(head) for head in self.heads_gained],
                "lost": [str(head) for head in self.heads_lost],
            },
            "num_kept": self.changes.num_kept,
            "came_in": dict(self.changes.added),
            "went_out": dict(self.changes.removed),
            "scores": {
                "num_samples": self.shift.num_samples,
                "num_changed": self.shift.num_changed,
                "mean_before": self.shift.mean_before,
                "mean_after": self.shift.mean_after,
                "rank_correlation": self.shift.rank_correlation,
            },
            "settings": [
                {"key": key, "before": before, "after": after}
                for key, before, after in self.settings
            ],
        }


def diff_subsets(home: Home, before: str, after: str) -> SubsetDifference:
    """Returns what lies between two subsets of one home.

    Raises:
        ArtifactError: one is no subset, or something it was made from is gone.
    """
    chains = [SubsetChain.of(home, one) for one in (before, after)]
    heads = [set(chain.head_ranking.reasoning_heads) for chain in chains]
    draws = [_draw_of(chain) for chain in chains]
    return SubsetDifference(
        before=before,
        after=after,
        heads_kept=tuple(sorted(heads[0] & heads[1])),
        heads_gained=tuple(sorted(heads[1] - heads[0])),
        heads_lost=tuple(sorted(heads[0] - heads[1])),
        changes=explain_changes(*draws),
        shift=measure_shift(*draws),
        settings=tuple(_different(home, before, after)),
    )


def _draw_of(chain: SubsetChain) -> Draw:
    pool = chain.pool_scores
    scores = dict(zip(pool["sample_id"].to_pylist(), pool["score"].to_pylist(), strict=True))
    return Draw(chain.selection, scores, chain.members)


def measure_shift(before: Draw, after: Draw) -> ScoreShift:
    """Returns how the scores changed of the samples that were scored for both draws."""
    shared = sorted(before.scores.keys() & after.scores.keys())
    old, new = ([draw.scores[name] for name in shared] for draw in (before, after))
    can_be_ranked = min(len(set(old)), len(set(new))) > 1
    return ScoreShift(
        num_samples=len(shared),
        num_changed=sum(a != b for a, b in zip(old, new, strict=True)),
        mean_before=fmean(old) if shared else None,
        mean_after=fmean(new) if shared else None,
        rank_correlation=spearman(old, new) if can_be_ranked else None,
    )


def _different(home: Home, before: str, after: str) -> list[tuple[str, Any, Any]]:
    """Returns what differs in the settings and versions of all that the two were made from."""
    recorded: list[dict[str, Any]] = []
    for name in (before, after):
        # The nearest last, to have the last word: probes may come from an older corpus.
        artifacts = list(reversed(read_lineage(home, name).artifacts))
        made_by = {key: value for one in artifacts for key, value in one.settings.items()}
        codes = {f"code_version.{one.stage}": one.code_version for one in artifacts}
        wanted = (*SLICES, "model_digest", "tokenizer_id", "dtype", "version")
        recorded.append({**{k: made_by[k] for k in wanted if k in made_by}, **codes})
    return list(different_settings(*recorded))


def diff_rows(difference: SubsetDifference) -> list[tuple[str, str, str]]:
    """Returns the samples as rows of text: why, how many came in, how many went out."""
    changes = difference.changes
    came, went = Counter(changes.added.values()), Counter(changes.removed.values())
    reasons = sorted({*came, *went})
    rows = [(reason, f"{came[reason]:,}", f"{went[reason]:,}") for reason in reasons]
    return [*rows, ("together", f"{len(changes.added):,}", f"{len(changes.removed):,}")]


def describe_difference(difference: SubsetDifference) -> list[str]:
    """Returns the rest in words, a line each: heads, samples that stayed, scores, settings."""
    shift = difference.shift
    lines = [
        f"heads: {len(difference.heads_kept)} kept"
        + _list(", gained ", difference.heads_gained)
        + _list(", lost ", difference.heads_lost),
        f"samples: {difference.changes.num_kept:,} in both",
    ]
    if shift.mean_before is not None and shift.mean_after is not None:
        ranked = "" if shift.rank_correlation is None else f"{shift.rank_correlation:+.3f}"
        lines.append(
            f"scores: {shift.num_changed:,} of {shift.num_samples:,} common ones changed, mean "
            f"{shift.mean_before:.4g} -> {shift.mean_after:.4g}"
            + (f", rank correlation {ranked}" if ranked else "")
        )
    lines += [f"{key}: {was} -> {now}" for key, was, now in difference.settings]
    return lines


def _list(lead: str, heads: Sequence[HeadId]) -> str:
    return lead + " ".join(str(head) for head in heads) if heads else ""
