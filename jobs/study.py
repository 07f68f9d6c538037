"""Making a study: the pool and the ranking, then every cell, seed by seed, then what they say."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from circuitseer_assets.assets.study import (
    CELL_STAGES,
    COMPARISONS_FILE,
    GROUP,
    LEFT_OUT_TAG,
    REPORT_FILE,
    cell_key,
)
from circuitseer_assets.errors import BudgetError, NotApplicableError
from circuitseer_assets.method.study_methods import METHODS, find_method
from jobs.run import PipelineFailedError, observe_now, run_job
from jobs.staleness import asset_graph_of, descendants_of, find_stale
from resources.home import Home

# What ends a method, and not the study: the model or the corpus cannot serve it, or it leaves too
# little to draw from.
_LEAVES_OUT = (NotApplicableError.__name__, BudgetError.__name__)
RESULTS = dg.AssetKey([GROUP, "study_results"])
_UPSTREAM = ("corpus", "probe_set", "pool", "head_ranking")
log = logging.getLogger("circuitseer")


def make_study_jobs() -> list[Any]:
    """Returns the job of the cells, for the UI's backfills too, and the job of their results."""
    return [
        dg.define_asset_job(
            "study_cells",
            selection=dg.AssetSelection.assets(*([GROUP, stage] for stage in CELL_STAGES)),
            description="Selects by one method with one seed, trains, evaluates.",
        ),
        dg.define_asset_job(
            "study_results",
            selection=dg.AssetSelection.assets(RESULTS),
            description="Compares the methods of which every seed is done.",
        ),
    ]


def run_study(defs: dg.Definitions, home: Home, *, all_methods: bool = False) -> Path:
    """Returns the folder with the report, every cell made or reused.

    Cells go seed by seed, so that a study that is stopped has compared all methods alike; the next
    call goes on with the cell that was not finished. A method that the base model or the corpus
    cannot serve, or that scores too few samples for the budget, is left out with its reason;
    `random` must run.

    Raises:
        PipelineFailedError: a step or a blocking check failed.
        SettingsError: a method is unknown.
    """
    settings = home.settings().study
    methods = list(METHODS if all_methods else settings.methods)
    for method in methods:
        find_method(method)
    make_pool_and_ranking(defs, home)
    cells = [(method, seed) for seed in range(settings.num_seeds) for method in methods]
    left_out: dict[str, str] = {}
    for number, (method, seed) in enumerate(cells, start=1):
        if method in left_out:
            continue
        log.info("study: %s, seed %d, cell %d of %d", method, seed, number, len(cells))
        try:
            run_job(defs, home, "study_cells", partition=cell_key(method, seed))
        except PipelineFailedError as error:
            if error.cause not in _LEAVES_OUT or method == "random":
                raise
            left_out[method] = str(error)
            log.warning("study: %s is left out: %s", method, error)
    told = {LEFT_OUT_TAG: json.dumps(left_out)} if left_out else {}
    made = run_job(defs, home, "study_results", tags=told)
    _build_reports(defs, home)
    artifact_id = made.of(RESULTS.to_user_string(), "artifact_id")
    return home.artifacts.folder("study_results", artifact_id)


def report_of(folder: Path) -> str:
    """Returns the report of a study, from its folder."""
    return (folder / REPORT_FILE).read_text(encoding="utf-8")


def comparisons_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the comparisons of a study, from its folder: the mart `study_significance`."""
    rows: list[dict[str, Any]] = pq.read_table(folder / COMPARISONS_FILE).to_pylist()
    return rows


def make_pool_and_ranking(defs: dg.Definitions, home: Home) -> None:
    """Makes what all cells share, as far as it is out of date.

    Raises:
        PipelineFailedError: a step or a blocking check failed.
    """
    observe_now(home)
    for _ in _UPSTREAM:  # an asset is stale only once the one above it has run and changed
        with dg.DagsterInstance.get() as instance:
            stale = find_stale(instance, asset_graph_of(defs), home)
        wanted = [dg.AssetKey(name) for name in _UPSTREAM if dg.AssetKey(name) in stale]
        if not wanted:
            return
        run_job(defs, home, assets=wanted)


def _build_reports(defs: dg.Definitions, home: Home) -> None:
    graph = asset_graph_of(defs)
    reports: Sequence[dg.AssetKey] = sorted(descendants_of(graph, [RESULTS]))
    run_job(defs, home, assets=reports)
