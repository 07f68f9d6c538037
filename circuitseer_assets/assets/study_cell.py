"""A study's cell: one method with one seed, what it selected, what that cost, and what came of it.

Its row is all that a comparison needs; its MLflow run is where a cell is looked up.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.assets.checkpoint import load_checkpoint
from circuitseer_assets.assets.evaluation import checkpoint_model, questions_of, read_outcomes
from circuitseer_assets.assets.stage import SUMMARY_FILE, Made, Materialised, StageRun
from circuitseer_assets.assets.subset import MEMBERS_FILE
from circuitseer_assets.method.composition import value_of
from circuitseer_assets.method.evaluation import summarise
from circuitseer_assets.method.scorers import SCORERS
from circuitseer_assets.method.study_methods import find_method
from circuitseer_assets.records import (
    Artifact,
    Message,
    ModelUse,
    TokenizedText,
    artifact_id_of,
)
from resources.benchmarks import load_task
from resources.language_model import LanguageModel, load_language_model
from resources.sample_files import read_samples
from resources.tracking_inputs import log_model_input

CODE_VERSION = "2"
CELL_FILE = "study_cell.json"
LOSSES_FILE = "held_out_losses.parquet"
_LOSS_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("doc_id", pa.string()),
        ("loss_nats", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)


def make_study_cell(run: StageRun, method: str, seed: int) -> Materialised:
    """Returns the cell of the checkpoint and evaluation that the run finds."""
    checkpoint, evaluation = run.parent("checkpoint"), run.parent("evaluation")
    identity = {
        "method": method,
        "seed": seed,
        "composition_columns": list(run.settings.study.composition_columns),
        **questions_of(run),
    }
    parents = [checkpoint, evaluation]
    cell_id = artifact_id_of("study_cell", identity, [p.artifact_id for p in parents], CODE_VERSION)

    def describe(folder: Path) -> Made:
        losses, model_use = _held_out_losses(run, checkpoint)
        pq.write_table(losses, folder / LOSSES_FILE)
        tasks = summarise(read_outcomes(run.folder(evaluation)))
        row = {
            "method": method,
            "seed": seed,
            "checkpoint_id": checkpoint.artifact_id,
            "evaluation_id": evaluation.artifact_id,
            "pass_at_1": fmean(task.pass_at_1 for task in tasks),
            "held_out_loss_nats": fmean(losses["loss_nats"].to_pylist()) if len(losses) else None,
            **_selection_figures(run, checkpoint, method),
            **_training_figures(run, checkpoint),
        }
        composition = _composition(run, checkpoint)
        (folder / CELL_FILE).write_text(json.dumps({**row, "composition": composition}, indent=1))
        return Made(
            data=[CELL_FILE, LOSSES_FILE],
            summary={**row, "composition": composition},
            rows={"study_cells": pa.Table.from_pylist([{"study_cell_id": cell_id, **row}])},
            mlflow_run_id=_log(run, cell_id, row),
            model_use=model_use,
        )

    return run.reuse_or_make("study_cell", identity, parents, describe, code_version=CODE_VERSION)


def load_cell(folder: Path) -> dict[str, Any]:
    """Returns the figures of a cell, from its folder."""
    stored: dict[str, Any] = json.loads((folder / CELL_FILE).read_text())
    return stored


# the second endpoint ------------------------------------------------------------------------------


def _held_out_losses(run: StageRun, checkpoint: Artifact) -> tuple[pa.Table, ModelUse]:
    """Returns the loss of every held-out worked solution that the benchmarks have, in nats.

    Second stands what that asked of the model.
    """
    from circuitseer_assets.method.forwards import count_forwards
    from circuitseer_assets.method.response_loss import response_losses

    model = load_language_model(checkpoint_model(run, checkpoint), cache=run.home.models)
    asked = dict(_solutions(run, model))
    with count_forwards(model.model) as counted:
        losses = list(
            response_losses(
                model.model,
                (text for _, text in asked.values()),
                max_batch_tokens=run.settings.execution.max_batch_tokens,
            )
        )
    rows = [
        {
            "task": asked[key][0],
            "doc_id": key.removeprefix(f"{asked[key][0]}/"),
            "loss_nats": float(of_tokens.mean()),
            "num_tokens": len(of_tokens),
        }
        for key, of_tokens in losses
    ]
    rows.sort(key=lambda row: (row["task"], row["doc_id"]))
    return pa.Table.from_pylist(rows, schema=_LOSS_SCHEMA), counted.use


def _solutions(
    run: StageRun, model: LanguageModel
) -> Iterator[tuple[str, tuple[str, TokenizedText]]]:
    settings = run.settings.evaluation
    for name in settings.tasks:
        benchmark = run.settings.decontamination.benchmark(name)
        task = load_task(benchmark, folder=run.home.folder / "benchmarks")
        problems, solutions = task.problems(), task.solutions()
        for i in task.subset(settings.max_problems) if solutions else ():
            key = f"{name}/{problems[i].doc_id}"
            prompt = [Message("user", problems[i].prompt)]
            yield key, (name, model.tokenize(key, prompt, solutions[i]))


# what it selected, and what that cost -------------------------------------------------------------


def _selection_figures(run: StageRun, checkpoint: Artifact, method: str) -> dict[str, Any]:
    subset = run.ancestor(checkpoint, "subset")
    scores = run.ancestor(subset, "sample_scores")
    drawn = _summary(run, subset)
    chosen = find_method(method)
    ranking = run.ancestor(scores, "head_ranking") if chosen.reads_ranking else None
    num_scoring = SCORERS[chosen.scorer].num_forwards * drawn["num_pool"]
    needed = [scores, ranking] if ranking else [scores]
    return {
        "subset_id": subset.artifact_id,
        "num_samples": drawn["num_samples"],
        "num_pool": drawn["num_pool"],
        "effective_pool_size": drawn["effective_pool_size"],
        "score_tilt_sd": drawn["score_tilt_sd"],
        "random_tilt_sd": drawn["random_tilt_sd"],
        "num_selection_forwards": num_scoring + (_ranking_forwards(run, ranking) if ranking else 0),
        # As measured when they were made: cells that share scores each count them whole.
        "selection_s": sum(_summary(run, artifact)["duration_s"] for artifact in needed),
    }


def _ranking_forwards(run: StageRun, ranking: Artifact) -> int:
    """Returns the forwards that choosing heads takes, each probe without and with every ablation.

    A restarted ablation counts as one. Confirmation and control probes choose no head.
    """
    path = run.folder(ranking) / "head_importance.parquet"
    num_probes: list[int] = pq.read_table(path, columns=["num_probes"])["num_probes"].to_pylist()
    return max(num_probes) + sum(num_probes)


def _training_figures(run: StageRun, checkpoint: Artifact) -> dict[str, Any]:
    summary = _summary(run, checkpoint)
    return {
        "num_train_tokens": summary["num_train_tokens"],
        "num_steps": summary["num_steps"],
        "training_s": summary["duration_s"],
    }


def _summary(run: StageRun, artifact: Artifact) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.folder(artifact) / SUMMARY_FILE).read_text())
    return loaded


def _composition(run: StageRun, checkpoint: Artifact) -> dict[str, dict[str, int]]:
    subset = run.ancestor(checkpoint, "subset")
    members = pq.read_table(run.folder(subset) / MEMBERS_FILE, columns=["sample_id"])["sample_id"]
    corpus = run.folder(run.ancestor(subset, "corpus")) / "samples"
    columns = run.settings.study.composition_columns
    return count_values(corpus, set(members.to_pylist()), columns)


def count_values(
    corpus: Path, sample_ids: set[str], columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Returns how many of the samples have each value of each column, as `value_of` tells it."""
    if not columns:
        return {}
    counts: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for sample in read_samples(corpus, sample_ids=sample_ids):
        for column, counted in counts.items():
            counted[value_of(sample, column)] += 1
    return {column: dict(sorted(counted.items())) for column, counted in counts.items()}


def _log(run: StageRun, cell_id: str, row: dict[str, Any]) -> str:
    """Returns the id of the MLflow run that holds the cell's figures."""
    uri = load_checkpoint(run.folder(run.parent("checkpoint")))["mlflow_model_uri"]
    tags = {**run.mlflow_tags(cell_id), "mlflow_model_uri": uri}
    numbers = {name: float(v) for name, v in row.items() if isinstance(v, int | float)}
    tracked = run.track(cell_id, tags, name=f"{row['method']}-{row['seed']}")
    tracked.log_params({name: v for name, v in row.items() if isinstance(v, str)})
    tracked.log_metrics(0, numbers)
    log_model_input(tracked, uri)
    return tracked.run_id
