"""What a reconciliation would do with every asset, and why; nothing is made or written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from circuitseer_assets.assets.audit import make_audit
from circuitseer_assets.assets.checkpoint import make_checkpoint
from circuitseer_assets.assets.corpus import make_corpus
from circuitseer_assets.assets.evaluation import make_evaluations
from circuitseer_assets.assets.head_ranking import make_head_ranking
from circuitseer_assets.assets.probe_set import make_probe_set_and_pool
from circuitseer_assets.assets.sample_scores import make_sample_scores
from circuitseer_assets.assets.stage import (
    Materialised,
    StageRun,
    WouldComputeError,
    latest_artifact,
)
from circuitseer_assets.assets.subset import make_subset
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.records import Artifact
from jobs.observe_settings import find_changed_slices
from jobs.staleness import NEVER_MADE, asset_graph_of, find_stale
from resources.home import Home

Action = Literal["fresh", "reuse", "compute", "depends"]


def _one(make: Callable[[StageRun], Materialised]) -> Callable[[StageRun], list[Materialised]]:
    return lambda run: [make(run)]


# The assets that one step makes, and what makes them, in the order of the graph.
STEPS: Mapping[tuple[str, ...], Callable[[StageRun], list[Materialised]]] = {
    ("corpus",): _one(make_corpus),
    ("probe_set", "pool"): lambda run: list(make_probe_set_and_pool(run)),
    ("head_ranking",): _one(make_head_ranking),
    ("sample_scores",): _one(make_sample_scores),
    ("subset",): _one(make_subset),
    ("checkpoint",): _one(make_checkpoint),
    ("evaluation",): lambda run: [make_evaluations(run)[1]],
    ("audit",): _one(make_audit),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """What would happen to one asset.

    `artifact` is the one it has, or would have again; None where that is not known yet.
    """

    asset: str
    action: Action
    reason: str
    artifact: Artifact | None

    @property
    def said(self) -> str:
        """What would happen, in words."""
        if self.action == "reuse" and self.artifact is not None:
            return f"reuse {self.artifact.artifact_id}"
        return {"depends": "depend on", "fresh": "stay"}.get(self.action, self.action)

    def as_json(self) -> dict[str, str | None]:
        """Returns it as plain JSON values."""
        artifact_id = self.artifact.artifact_id if self.artifact else None
        return {
            "asset": self.asset,
            "action": self.action,
            "reason": self.reason,
            "artifact_id": artifact_id,
        }


def make_plan(defs: dg.Definitions, home: Home) -> list[Planned]:
    """Returns what a reconciliation would do with every stage's assets, in the graph's order.

    An asset `depends` where something above it would be computed: whether it is stale afterwards is
    known once the content is.
    """
    graph = asset_graph_of(defs)
    with dg.DagsterInstance.get() as instance:
        stale = {
            key.to_user_string(): why for key, why in find_stale(instance, graph, home).items()
        }
        observations = find_changed_slices(instance, home)
        changed = {observation.asset_key.to_user_string() for observation in observations}
        latest = {name: _latest(instance, home, name) for names in STEPS for name in names}
    planned: dict[str, Planned] = {}
    for names in STEPS:
        parents = _parents_of(graph, names)
        slices = sorted(parents & changed)
        ahead = [planned[name] for name in planned if name in parents]
        for step in _plan_step(home, names, slices, ahead, stale, latest):
            planned[step.asset] = step
    return list(planned.values())


def _plan_step(
    home: Home,
    names: tuple[str, ...],
    changed_slices: list[str],
    parents: list[Planned],
    stale: Mapping[str, str],
    latest: Mapping[str, Artifact | None],
) -> list[Planned]:
    reasons = [f"{name} changed" for name in changed_slices]
    reasons += [f"{p.asset} would be another" for p in parents if _would_be_another(p, latest)]
    reasons += [stale[name] for name in names if name in stale]
    reason = "; ".join(dict.fromkeys(reasons))
    never_made = any(stale.get(name) == NEVER_MADE for name in names)
    open_parents = [p.asset for p in parents if p.artifact is None]
    if open_parents and not reasons:
        whether = f"whether {', '.join(open_parents)} changes"
        return [Planned(name, "depends", whether, None) for name in names]
    if not reasons:
        return [
            Planned(name, "fresh", "nothing it depends on changed", latest[name]) for name in names
        ]
    if open_parents:
        action: Action = "compute" if never_made or changed_slices else "depends"
        return [Planned(name, action, reason, None) for name in names]
    known = {p.asset: p.artifact for p in parents if p.artifact is not None}
    try:
        made = STEPS[names](StageRun.planned(home, known))
    except WouldComputeError:
        return [Planned(name, "compute", reason, None) for name in names]
    return [
        Planned(name, "reuse", reason, done.artifact)
        for name, done in zip(names, made, strict=True)
    ]


def _would_be_another(parent: Planned, latest: Mapping[str, Artifact | None]) -> bool:
    """Returns whether a parent that is reused has other content than the present one."""
    present = latest[parent.asset]
    return parent.action == "reuse" and (
        present is None
        or parent.artifact is None
        or parent.artifact.data_version != present.data_version
    )


def _latest(instance: dg.DagsterInstance, home: Home, name: str) -> Artifact | None:
    try:
        return latest_artifact(instance, home, name)
    except ArtifactError:
        return None


def _parents_of(graph: AssetGraph, names: tuple[str, ...]) -> set[str]:
    keys = {parent for name in names for parent in graph.get(dg.AssetKey(name)).parent_keys}
    return {key.to_user_string() for key in keys} - set(names)
