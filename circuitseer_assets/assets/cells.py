"""Cells: the graph's own stages once more, partitioned, each partition with settings of its own.

Whatever exists already is reused, whether the graph made it or another cell did.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import dagster as dg

from circuitseer_assets.assets import checkpoint, evaluation, subset
from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import StageRun
from resources.home import Home

RunOfCell = Callable[[dg.AssetExecutionContext, Home, Sequence[str]], StageRun]
"""Takes the materialisation, the home and the slices read; returns the run of its cell."""


def make_cell_asset(
    group: str,
    stage: ModuleType,
    partitions: dg.PartitionsDefinition[Any],
    *,
    run_of_cell: RunOfCell,
    upstream: Sequence[Any],
    kinds: set[str],
    slices: Sequence[str],
    show: Callable[[StageRun], dg.MaterializeResult[Any]],
    description: str,
) -> dg.AssetsDefinition:
    """Returns a stage's asset in a group of cells: `show` makes it and says what was made."""
    name = stage.__name__.rpartition(".")[2]

    @dg.asset(
        key=[group, name],
        group_name=group,
        partitions_def=partitions,
        kinds=kinds,
        deps=[*upstream, *(settings_key(slice_) for slice_ in slices)],
        code_version=stage.CODE_VERSION,
        description=description,
    )
    def cell(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
        return show(run_of_cell(context, home, slices))

    return cell


def make_training_cells(
    group: str,
    partitions: dg.PartitionsDefinition[Any],
    *,
    run_of_cell: RunOfCell,
    scores: dg.AssetDep | dg.AssetKey,
) -> list[dg.AssetsDefinition]:
    """Returns what follows a group's scores: subset, checkpoint and evaluation of every cell."""

    def make(stage: ModuleType, **more: Any) -> dg.AssetsDefinition:
        return make_cell_asset(group, stage, partitions, run_of_cell=run_of_cell, **more)

    return [
        make(
            subset,
            upstream=[scores],
            kinds={"duckdb"},
            slices=["selection"],
            show=lambda run: run.result(subset.make_subset(run)),
            description="The subset of one cell.",
        ),
        make(
            checkpoint,
            upstream=[dg.AssetKey([group, "subset"])],
            kinds={"pytorch", "mlflow"},
            slices=["base_model", "training"],
            show=lambda run: run.result(checkpoint.make_checkpoint(run)),
            description="The base model of one cell, fine-tuned on its subset.",
        ),
        make(
            evaluation,
            upstream=[dg.AssetKey([group, "checkpoint"])],
            kinds={"pytorch", "duckdb"},
            slices=["base_model", "decontamination", "evaluation"],
            show=evaluation.show_evaluations,
            description="Pass@1 of one cell, before and after fine-tuning.",
        ),
    ]
