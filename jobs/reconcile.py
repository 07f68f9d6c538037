"""Making again what is out of date, and nothing else, one frontier after the other.

Staleness in Dagster is not transitive: what lies below a stale asset is only marked once that asset
has run and its content changed. So: observe the settings, run the stale assets without a stale
ancestor, look again, until nothing is stale. A step or a blocking check that fails ends it; the
next call takes that asset up again first: nothing below it is made before the check passes.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from jobs.run import Metadata, PipelineFailedError, PipelineRun, observe_now, run_job
from jobs.staleness import asset_graph_of, find_stale, kept_fresh, next_frontier
from resources.home import Home
from resources.processes import one_at_a_time

log = logging.getLogger("circuitseer")


@dataclass(frozen=True)
class Reconciliation:
    """What one reconciliation did, and how everything stands after it."""

    run_ids: tuple[str, ...]
    duration_s: float
    metadata: Metadata
    computed: tuple[str, ...]
    reused: tuple[str, ...]
    untouched: tuple[str, ...]
    saved_s: float = field(default=0.0)

    def of(self, asset: str, name: str) -> Any:
        """Returns one metadata value of an asset's latest materialisation."""
        return self.metadata[asset][name]

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values, without the pictures and texts made for the UI."""
        return {
            "run_ids": list(self.run_ids),
            "duration_s": self.duration_s,
            "computed": list(self.computed),
            "reused": list(self.reused),
            "untouched": list(self.untouched),
            "saved_s": self.saved_s,
            "assets": {
                asset: {
                    name: value
                    for name, value in values.items()
                    if isinstance(value, str | int | float | list) and not name.endswith("_md")
                }
                for asset, values in self.metadata.items()
            },
        }


def reconcile(defs: dg.Definitions, home: Home) -> Reconciliation:
    """Returns what was done until nothing was stale any more.

    An empty home gets one whole run. The dbt models come last, once. Two reconciliations of one
    home come one after the other.

    Raises:
        PipelineFailedError: a step or a blocking check failed; what was computed before is logged,
            and kept for the next call.
    """
    home.set_environment()
    started = time.monotonic()
    graph = asset_graph_of(defs)
    runs: list[PipelineRun] = []
    with one_at_a_time(home.lock_file("reconcile"), f"making what is out of date in {home.folder}"):
        try:
            _make_until_fresh(defs, home, graph, runs)
        except PipelineFailedError as error:
            is_reused = _find_reused([*(run.metadata for run in runs), error.metadata])
            if computed := [stage for stage, reused in is_reused.items() if not reused]:
                log.info("computed before the failure, and kept: %s", ", ".join(computed))
            raise
    return _summarise(runs, _latest_metadata(graph), time.monotonic() - started)


def _make_until_fresh(
    defs: dg.Definitions, home: Home, graph: AssetGraph, runs: list[PipelineRun]
) -> None:
    """Returns when nothing is stale; every run that reached its end is then in `runs`."""
    changed = observe_now(home)
    if changed:
        log.info("changed settings: %s", ", ".join(changed))
    tags = {"circuitseer/reconciliation": uuid.uuid4().hex[:8]}
    reasons: dict[dg.AssetKey, str] = {}
    while True:
        with dg.DagsterInstance.get() as instance:
            stale = find_stale(instance, graph, home)
            whole = len(stale) == len(kept_fresh(graph))
            frontier = set(stale) if whole else next_frontier(graph, stale.keys())
            _refuse_what_stays_stale(instance, frontier, stale, runs, reasons)
        if not frontier:
            return
        for key in sorted(frontier & stale.keys()):
            log.info("%s: %s", key.to_user_string(), stale[key])
            reasons[key] = stale[key]
        runs.append(run_job(defs, home, assets=None if whole else frontier, tags=tags))


def _refuse_what_stays_stale(
    instance: dg.DagsterInstance,
    frontier: AbstractSet[dg.AssetKey],
    stale: Mapping[dg.AssetKey, str],
    runs: Sequence[PipelineRun],
    reasons: Mapping[dg.AssetKey, str],
) -> None:
    """Returns unless an asset is stale for the reason for which one of these runs just made it."""
    ours = {run.run_id for run in runs}
    for key in sorted(frontier & stale.keys()):
        event = instance.get_latest_materialization_event(key)
        if event is not None and event.run_id in ours and reasons.get(key) == stale[key]:
            raise PipelineFailedError(
                f"{key.to_user_string()} must be fresh after having run, and is stale "
                f"({stale[key]}); see its page in the UI"
            )


def _latest_metadata(graph: AssetGraph) -> dict[str, dict[str, Any]]:
    """Returns the metadata of every asset's latest materialisation."""
    found = {}
    with dg.DagsterInstance.get() as instance:
        for key in kept_fresh(graph):
            event = instance.get_latest_materialization_event(key)
            if event is not None and event.asset_materialization is not None:
                values = event.asset_materialization.metadata
                found[key.to_user_string()] = {name: v.value for name, v in values.items()}
    return found


def _find_reused(runs: Iterable[Metadata]) -> dict[str, bool]:
    """Returns of every stage that these runs materialised whether its artifact was there before."""
    return {
        asset: bool(values["reused"])
        for metadata in runs
        for asset, values in metadata.items()
        if "reused" in values
    }


def _summarise(
    runs: list[PipelineRun], metadata: dict[str, dict[str, Any]], duration_s: float
) -> Reconciliation:
    ran = _find_reused(run.metadata for run in runs)
    stages = [asset for asset, values in metadata.items() if "reused" in values]
    reused = tuple(asset for asset in stages if ran.get(asset))
    untouched = tuple(asset for asset in stages if asset not in ran)
    spared = (metadata[asset].get("duration_s", 0.0) for asset in (*reused, *untouched))
    return Reconciliation(
        run_ids=tuple(run.run_id for run in runs),
        duration_s=duration_s,
        metadata=metadata,
        computed=tuple(asset for asset in stages if asset in ran and not ran[asset]),
        reused=reused,
        untouched=untouched,
        saved_s=float(sum(spared)),
    )
