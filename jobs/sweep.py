"""Making a sweep: every base model's ranking and scores, then every cell, one run each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from circuitseer_assets.assets.sweep import BUDGET, GROUP, MODEL, partitions_of
from jobs.run import PipelineFailedError, PipelineRun, observe_now, run_job
from jobs.staleness import asset_graph_of, find_stale
from resources.home import Home


def make_sweep_jobs() -> list[Any]:
    """Returns the job of the base models and the job of the cells, for the UI's backfills too."""
    of_models = dg.AssetSelection.assets(["sweep", "head_ranking"], ["sweep", "sample_scores"])
    return [
        dg.define_asset_job(
            "sweep_models",
            selection=of_models,
            description="Ranks the heads of one base model of the sweep, and scores the pool.",
        ),
        dg.define_asset_job(
            "sweep_cells",
            selection=dg.AssetSelection.groups(GROUP) - of_models,
            description="Draws, trains and evaluates one cell of the sweep.",
        ),
    ]


@dataclass(frozen=True)
class Cell:
    """What one base model with one budget gave; `computed` are the stages not reused."""

    base_model: str
    budget_fraction: str
    num_samples: int
    base_pass_at_1: float
    pass_at_1: float
    computed: tuple[str, ...]


def run_sweep(defs: dg.Definitions, home: Home) -> list[Cell]:
    """Returns every cell, made or reused; the graph has to be fresh up to its pool.

    Raises:
        PipelineFailedError: a step failed, or the pool is out of date.
    """
    observe_now(home)
    with dg.DagsterInstance.get() as instance:
        stale = find_stale(instance, asset_graph_of(defs), home)
    for name in ("corpus", "probe_set", "pool"):
        if dg.AssetKey(name) in stale:
            reason = stale[dg.AssetKey(name)]
            raise PipelineFailedError(
                f"{name} must be fresh before a sweep, and is not ({reason}); run `make run`"
            )
    models, cells = partitions_of(home.settings().sweep)
    made = {
        model: run_job(defs, home, "sweep_models", partition=model)
        for model in models.get_partition_keys()
    }
    done = []
    for key in cells.get_partition_keys():
        cell = cells.get_partition_key_from_str(key).keys_by_dimension
        done.append(
            _cell(cell, made[cell[MODEL]], run_job(defs, home, "sweep_cells", partition=key))
        )
    return done


def _cell(key: Mapping[str, str], model: PipelineRun, cell: PipelineRun) -> Cell:
    ran = {**model.metadata, **cell.metadata}
    return Cell(
        base_model=key[MODEL],
        budget_fraction=key[BUDGET],
        num_samples=cell.of("sweep/subset", "num_samples"),
        base_pass_at_1=cell.of("sweep/evaluation", "mean_base_pass_at_1"),
        pass_at_1=cell.of("sweep/evaluation", "mean_pass_at_1"),
        computed=tuple(
            name.removeprefix("sweep/") for name, values in ran.items() if not values["reused"]
        ),
    )


SWEEP_COLUMNS = ("base model", "budget", "samples", "Pass@1 before", "after", "computed")


def sweep_rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Returns a row of text for every cell, by `SWEEP_COLUMNS`."""
    return [
        (
            cell.base_model,
            cell.budget_fraction,
            str(cell.num_samples),
            f"{100 * cell.base_pass_at_1:.1f} %",
            f"{100 * cell.pass_at_1:.1f} %",
            ", ".join(cell.computed) or "nothing",
        )
        for cell in cells
    ]
