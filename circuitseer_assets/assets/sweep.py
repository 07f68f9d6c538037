"""The sweep: base models and budgets side by side, by the same stage functions as the graph.

A cell is one base model with one budget. Rankings and scores are per model, the rest per cell;
corpus, probe set and pool are the graph's own. Whatever exists already is reused, whether the graph
made it or another cell did.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from circuitseer_assets.assets import checkpoint, head_ranking, sample_scores, subset
from circuitseer_assets.assets import evaluation as evaluation_stage
from circuitseer_assets.assets.slices import settings_key
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

    def run_of(context: dg.AssetExecutionContext, home: Home, *slices: str) -> StageRun:
        keys = _keys_of(context.partition_key)
        named = settings.base_models.get(keys[MODEL])
        changes: dict[str, Any] = {}
        if named is not None:
            changes["base_model"] = named.model_dump(mode="json")
        if BUDGET in keys:
            selection = home.settings().slice("selection")
            changes["selection"] = {**selection, "budget": {"fraction": float(keys[BUDGET])}}
        partitions = dict.fromkeys(("head_ranking", "sample_scores"), keys[MODEL])
        partitions |= dict.fromkeys(("subset", "checkpoint"), context.partition_key)
        run = StageRun.of_cell(context, home, changes, partitions, *slices)
        if BUDGET in keys:
            _ensure_same_model(run, context.partition_key)
        return run

    @dg.asset(
        key=["sweep", "head_ranking"],
        group_name=GROUP,
        partitions_def=models,
        kinds={"pytorch", "duckdb"},
        deps=["probe_set", settings_key("base_model"), settings_key("head_ranking")],
        code_version=head_ranking.CODE_VERSION,
        description="The ranking of one base model's heads.",
    )
    def sweep_head_ranking(
        context: dg.AssetExecutionContext, home: Home
    ) -> dg.MaterializeResult[Any]:
        run = run_of(context, home, "base_model", "head_ranking")
        return run.result(head_ranking.make_head_ranking(run))

    @dg.asset(
        key=["sweep", "sample_scores"],
        group_name=GROUP,
        partitions_def=models,
        kinds={"pytorch", "duckdb"},
        deps=["pool", sweep_head_ranking, settings_key("base_model"), settings_key("scoring")],
        code_version=sample_scores.CODE_VERSION,
        description="The pool's scores by one base model.",
    )
    def sweep_sample_scores(
        context: dg.AssetExecutionContext, home: Home
    ) -> dg.MaterializeResult[Any]:
        run = run_of(context, home, "base_model", "scoring")
        return run.result(sample_scores.make_sample_scores(run))

    @dg.asset(
        key=["sweep", "subset"],
        group_name=GROUP,
        partitions_def=cells,
        kinds={"duckdb"},
        deps=[
            dg.AssetDep(sweep_sample_scores, partition_mapping=of_the_model),
            settings_key("selection"),
        ],
        code_version=subset.CODE_VERSION,
        description="The subset of one budget, drawn by one base model's scores.",
    )
    def sweep_subset(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
        run = run_of(context, home, "selection")
        return run.result(subset.make_subset(run))

    @dg.asset(
        key=["sweep", "checkpoint"],
        group_name=GROUP,
        partitions_def=cells,
        kinds={"pytorch", "mlflow"},
        deps=[sweep_subset, settings_key("base_model"), settings_key("training")],
        code_version=checkpoint.CODE_VERSION,
        description="One base model, fine-tuned on the subset of one budget.",
    )
    def sweep_checkpoint(
        context: dg.AssetExecutionContext, home: Home
    ) -> dg.MaterializeResult[Any]:
        run = run_of(context, home, "base_model", "training")
        return run.result(checkpoint.make_checkpoint(run))

    @dg.asset(
        key=["sweep", "evaluation"],
        group_name=GROUP,
        partitions_def=cells,
        kinds={"pytorch"},
        deps=[
            sweep_checkpoint,
            settings_key("base_model"),
            settings_key("decontamination"),
            settings_key("evaluation"),
        ],
        code_version=evaluation_stage.CODE_VERSION,
        description="Pass@1 of one cell, before and after fine-tuning.",
    )
    def sweep_evaluation(
        context: dg.AssetExecutionContext, home: Home
    ) -> dg.MaterializeResult[Any]:
        return evaluation_stage.show_evaluations(
            run_of(context, home, "base_model", "decontamination", "evaluation")
        )

    return [
        sweep_head_ranking,
        sweep_sample_scores,
        sweep_subset,
        sweep_checkpoint,
        sweep_evaluation,
    ]


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
