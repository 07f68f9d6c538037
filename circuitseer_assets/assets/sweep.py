"""The sweep: base models and budgets side by side, by the same stage functions as the graph.

A cell is one base model with one budget. Rankings and scores are per model, the rest per cell;
corpus, probe set and pool are the graph's own.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg

from circuitseer_assets.assets import head_ranking, sample_scores
from circuitseer_assets.assets.cells import make_cell_asset, make_training_cells
from circuitseer_assets.assets.stage import StageRun
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.settings import MODEL_IN_USE, SweepSettings
from resources.home import Home

GROUP = "sweep"
MODEL, BUDGET = "base_model", "budget_fraction"


def make_sweep(settings: SweepSettings) -> list[dg.AssetsDefinition]:
    """Returns the sweep's assets, partitioned by base model and by budget."""
    models, cells = partitions_of(settings)
    with warnings.catch_warnings():
        # The pinned dagster has it, and the tests see it work: nothing a user has to be told.
        warnings.simplefilter("ignore", dg.BetaWarning)
        of_the_model = dg.MultiToSingleDimensionPartitionMapping(MODEL)

    def run_of_cell(
        context: dg.AssetExecutionContext, home: Home, slices: Sequence[str]
    ) -> StageRun:
        return _run_of(context, home, settings, slices)

    make_asset = partial(make_cell_asset, GROUP, run_of_cell=run_of_cell)
    return [
        make_asset(
            head_ranking,
            models,
            kinds={"pytorch", "duckdb"},
            upstream=["probe_set"],
            slices=["base_model", "head_ranking"],
            show=lambda run: run.result(head_ranking.make_head_ranking(run)),
            description="The ranking of one base model's heads.",
        ),
        make_asset(
            sample_scores,
            models,
            kinds={"pytorch", "duckdb"},
            upstream=["pool", dg.AssetKey([GROUP, "head_ranking"])],
            slices=["base_model", "scoring"],
            show=lambda run: run.result(sample_scores.make_sample_scores(run)),
            description="The pool's scores by one base model.",
        ),
        *make_training_cells(
            GROUP,
            cells,
            run_of_cell=run_of_cell,
            scores=dg.AssetDep(
                dg.AssetKey([GROUP, "sample_scores"]), partition_mapping=of_the_model
            ),
        ),
    ]


def _run_of(
    context: dg.AssetExecutionContext, home: Home, settings: SweepSettings, slices: Sequence[str]
) -> StageRun:
    keys = _keys_of(context.partition_key)
    changes: dict[str, Any] = {}
    if keys[MODEL] != MODEL_IN_USE:
        changes["base_model"] = settings.base_models[keys[MODEL]].model_dump(mode="json")
    if BUDGET in keys:
        selection = home.settings().slice("selection")
        changes["selection"] = {**selection, "budget": {"fraction": float(keys[BUDGET])}}
    partitions = dict.fromkeys(("head_ranking", "sample_scores"), keys[MODEL])
    partitions |= dict.fromkeys(("subset", "checkpoint"), context.partition_key)
    run = StageRun.of_cell(context, home, GROUP, changes, partitions, *slices)
    if BUDGET in keys:
        _ensure_same_model(run, context.partition_key)
    return run


def _ensure_same_model(run: StageRun, cell: str) -> None:
    """Returns if the cell's scores are by the cell's model, which may have changed since.

    Raises:
        ArtifactError: they are by another.
    """
    scores = run.parent("sample_scores")
    if scores.settings["model_digest"] != run.home.model_identity()["model_digest"]:
        raise ArtifactError(
            f"the scores of {cell} must be by its own base model, got {scores.artifact_id} by "
            f"{scores.settings['model_digest']}; materialise sweep/sample_scores of it first"
        )


def partitions_of(
    settings: SweepSettings,
) -> tuple[dg.StaticPartitionsDefinition, dg.MultiPartitionsDefinition]:
    """Returns the partitions by base model, and the cells: by base model and budget."""
    models = dg.StaticPartitionsDefinition([MODEL_IN_USE, *settings.base_models])
    budgets = dg.StaticPartitionsDefinition([repr(b) for b in settings.budget_fractions])
    return models, dg.MultiPartitionsDefinition({MODEL: models, BUDGET: budgets})


def _keys_of(partition_key: str) -> Mapping[str, str]:
    """Returns the partition's key in each of its dimensions."""
    if isinstance(partition_key, dg.MultiPartitionKey):
        return partition_key.keys_by_dimension
    return {MODEL: partition_key}
