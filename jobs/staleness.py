"""Which assets are stale and why: by the class the Dagster UI itself asks, and by what is lost.

That class is private to Dagster, so this is the only place that names it, the version of dagster is
pinned, and a test compares what it says with what the UI's GraphQL says.
"""

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContext
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecordStatus,
)

from resources.home import Home

NEVER_MADE = "it was never materialised"
_DONE = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
REPORTS_GROUP = "dbt_models"
_MADE_WHEN_ASKED_FOR = ("sweep", "study")


class _Context(LoadingContext):
    """What Dagster loads its records through."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[type, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[type, Any]:
        return self._loaders


def asset_graph_of(defs: dg.Definitions) -> AssetGraph:
    """Returns the graph of all assets."""
    return defs.resolve_asset_graph()


def kept_fresh(graph: BaseAssetGraph[Any]) -> list[dg.AssetKey]:
    """Returns the assets that a reconciliation keeps fresh, in topological order.

    A sweep's and a study's are not among them: they are made when they are asked for.
    """
    return [
        key
        for key in graph.toposorted_asset_keys
        if graph.get(key).is_materializable
        and graph.get(key).group_name not in _MADE_WHEN_ASKED_FOR
    ]


def find_stale(
    instance: dg.DagsterInstance, graph: BaseAssetGraph[Any], home: Home
) -> dict[dg.AssetKey, str]:
    """Returns why each stale or missing asset is so, in topological order; fresh ones are left out.

    Two more count as stale that Dagster calls fresh. One whose files or row are gone: it is made
    again. And one whose blocking check failed, or never saw its latest materialisation: it is
    looked up and checked again, and nothing is built on it before the check passes.
    """
    resolver = CachingStaleStatusResolver(instance, graph, _Context(instance))
    unchecked = _find_unchecked(instance, graph)
    lost = _find_lost(instance, graph, home)
    stale = {}
    for key in kept_fresh(graph):
        status = resolver.get_status(key)
        if status == StaleStatus.MISSING:
            stale[key] = NEVER_MADE
        elif status == StaleStatus.STALE:
            stale[key] = "; ".join(_in_words(cause) for cause in resolver.get_stale_causes(key))
        elif key in lost or key in unchecked:
            stale[key] = lost.get(key) or unchecked[key]
    return stale


def _in_words(cause: Any) -> str:
    about = cause.dependency.asset_key.to_user_string() if cause.dependency else None
    return f"{about} {cause.reason}" if about else str(cause.reason)


def _find_lost(
    instance: dg.DagsterInstance, graph: BaseAssetGraph[Any], home: Home
) -> dict[dg.AssetKey, str]:
    lost = {}
    for key in kept_fresh(graph):
        event = instance.get_latest_materialization_event(key)
        made = event.asset_materialization if event else None
        if made is None or "artifact_id" not in made.metadata:
            continue
        artifact_id = str(made.metadata["artifact_id"].value)
        artifact = home.warehouse.find_artifact(artifact_id)
        if artifact is None:
            lost[key] = f"{artifact_id} is not in the warehouse"
        elif not home.artifacts.is_present(artifact.stage, artifact_id):
            lost[key] = f"files of {artifact_id} are gone"
        elif "mlflow_model_uri" in made.metadata:
            uri = str(made.metadata["mlflow_model_uri"].value)
            if not home.tracking().has_model(uri):
                lost[key] = f"the weights of {uri} are gone"
    return lost


def _find_unchecked(
    instance: dg.DagsterInstance, graph: BaseAssetGraph[Any]
) -> dict[dg.AssetKey, str]:
    unchecked = {}
    for key, evaluation in _latest_evaluations(instance, graph).items():
        event = instance.get_latest_materialization_event(key.asset_key)
        if event is None:
            continue
        seen = evaluation.target_materialization_data if evaluation else None
        if evaluation is None or seen is None or seen.run_id != event.run_id:
            unchecked[key.asset_key] = f"its blocking check {key.name} has not seen it"
        elif not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            said = f": {evaluation.description}" if evaluation.description else ""
            unchecked[key.asset_key] = f"its blocking check {key.name} failed{said}"
    return unchecked


def _latest_evaluations(
    instance: dg.DagsterInstance, graph: BaseAssetGraph[Any]
) -> Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation | None]:
    """Returns each blocking check's latest evaluation, None where it has none."""
    blocking = _blocking_checks(graph)
    storage = instance.event_log_storage
    latest = storage.get_latest_asset_check_execution_by_key(blocking)
    evaluations = {}
    for key in blocking:
        record = latest.get(key)
        if record is not None and record.status not in _DONE:
            # Another run is about to check it, or died before it did: what was seen before counts.
            records = storage.get_asset_check_execution_history(key, limit=1, status=_DONE)
            record = records[0] if records else None
        event = record.event.dagster_event if record and record.event else None
        evaluations[key] = event.asset_check_evaluation_data if event else None
    return evaluations


def _blocking_checks(graph: BaseAssetGraph[Any]) -> list[dg.AssetCheckKey]:
    checks = (graph.get(key) for key in graph.asset_check_keys)
    return sorted((check.key for check in checks if check.blocking), key=str)


def descendants_of(graph: BaseAssetGraph[Any], keys: Iterable[dg.AssetKey]) -> set[dg.AssetKey]:
    """Returns everything downstream of the assets, themselves left out."""
    found: set[dg.AssetKey] = set()
    waiting = list(keys)
    while waiting:
        children = graph.get(waiting.pop()).child_keys - found
        found |= children
        waiting += children
    return found


def next_frontier(
    graph: BaseAssetGraph[Any], stale: Collection[dg.AssetKey]
) -> AbstractSet[dg.AssetKey]:
    """Returns what to make next of what is stale: a frontier of stages, and the reports last.

    The reports are the dbt models: cheap, and all at once.
    """
    reports = {key for key in kept_fresh(graph) if graph.get(key).group_name == REPORTS_GROUP}
    stale_reports = set(stale) & reports
    if set(stale) - reports:
        return frontier_of(graph, set(stale) - reports)
    return stale_reports | (descendants_of(graph, stale_reports) & reports)


def frontier_of(graph: BaseAssetGraph[Any], stale: Iterable[dg.AssetKey]) -> set[dg.AssetKey]:
    """Returns the stale assets without a stale ancestor, with all that is made together with them.

    Assets made by one step are one node here: a sibling is no ancestor.
    """
    candidates = set(stale)
    together = {key: graph.get(key).execution_set_asset_keys | {key} for key in candidates}
    behind = {
        key
        for ahead in candidates
        for key in descendants_of(graph, [ahead])
        if key not in together[ahead]
    }
    first = candidates - behind
    return {sibling for key in first for sibling in together[key]}
