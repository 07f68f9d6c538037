"""Stage checkpoint: the base model fine-tuned on the subset, logged as an MLflow model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.figures import draw_loss_curve, to_markdown_image
from circuitseer_assets.records import Artifact, FineTuning, ModelUse, Sample, artifact_id_of
from resources.artifacts import digest_file
from resources.home import Home
from resources.language_model import load_language_model
from resources.sample_files import read_samples
from resources.tracking import TrackedRun
from resources.tracking_inputs import log_training_set
from resources.training_launch import Report, train_in_own_process

CODE_VERSION = "2"
CHECKPOINT_FILE = "checkpoint.json"
WEIGHTS_FILE = "weights.json"


@dg.asset(
    group_name="checkpoint",
    kinds={"pytorch", "mlflow"},
    deps=["subset", settings_key("base_model"), settings_key("training")],
    code_version=CODE_VERSION,
    description="The base model fine-tuned on the subset; its weights lie in MLflow.",
)
def checkpoint(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Fine-tunes the base model on the subset."""
    run = StageRun.of(context, home, "base_model", "training")
    return run.result(make_checkpoint(run))


def make_checkpoint(run: StageRun) -> Materialised:
    """Returns the checkpoint trained on the latest subset."""
    subset = run.parent("subset")
    identity = {
        "training": run.settings.slice("training"),
        **run.home.model_identity(),
    }
    checkpoint_id = artifact_id_of("checkpoint", identity, [subset.artifact_id], CODE_VERSION)
    return run.reuse_or_make(
        "checkpoint",
        identity,
        [subset],
        lambda folder: _train_and_log(run, subset, checkpoint_id, folder),
        code_version=CODE_VERSION,
        still_whole=lambda folder: _model_is_there(run.home, folder),
    )


def _model_is_there(home: Home, folder: Path) -> bool:
    """Returns whether MLflow still holds the weights, and they are the ones that were logged."""
    try:
        model = home.tracking().model_folder(load_checkpoint(folder)["mlflow_model_uri"])
    except ArtifactError:
        return False
    recorded = json.loads((folder / WEIGHTS_FILE).read_text())
    return bool(recorded == _weights(model))


def is_as_logged(folder: Path, mlflow_files: Path) -> bool:
    """Returns whether the weights of the checkpoint in `folder` are whole among MLflow's files."""
    model_id = load_checkpoint(folder)["mlflow_model_uri"].removeprefix("models:/")
    recorded = json.loads((folder / WEIGHTS_FILE).read_text())
    return bool(recorded == _weights(mlflow_files / "models" / model_id / "artifacts" / "model"))


def _weights(model: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in sorted(model.glob("*.safetensors"))}


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Returns what is stored of a checkpoint: its MLflow model and how its training went."""
    stored: dict[str, Any] = json.loads((folder / CHECKPOINT_FILE).read_text())
    return stored


def _train_and_log(run: StageRun, subset: Artifact, checkpoint_id: str, folder: Path) -> Made:
    tags = {**run.mlflow_tags(checkpoint_id), "subset_id": subset.artifact_id}
    # The work folder outlives a killed run: training goes on from its last trainer checkpoint.
    work = run.work_folder(checkpoint_id)
    members = run.folder(subset) / "subset_members.parquet"
    tracked = run.track(checkpoint_id, tags)
    tracked.log_params({"training": run.settings.slice("training")})
    log_training_set(
        tracked, members, subset_id=subset.artifact_id, data_version=subset.data_version
    )
    fine_tuning, model_use = _fine_tune(run, subset, members, work, tracked)
    uri = tracked.log_checkpoint(work / "model", tags=tags)
    made = _describe(run, subset, checkpoint_id, fine_tuning, uri, work / "model", folder)
    return Made(**made, mlflow_run_id=tracked.run_id, model_use=model_use)


def _fine_tune(
    run: StageRun, subset: Artifact, members: Path, work: Path, tracked: TrackedRun
) -> tuple[FineTuning, ModelUse]:
    from circuitseer_assets.method.training_rows import count_steps

    corpus = run.folder(run.ancestor(subset, "corpus")) / "samples"
    wanted = set(pq.read_table(members, columns=["sample_id"])["sample_id"].to_pylist())
    samples = list(read_samples(corpus, sample_ids=wanted))
    progress = run.progress("checkpoint, optimiser steps")
    total = count_steps(len(samples), run.settings.training)
    reported = set()

    def report(step: int, metrics: Mapping[str, float]) -> None:
        tracked.log_metrics(step, metrics)
        reported.add(step)
        progress(step, total)

    if run.context is not None and _has_own_process(run):
        fine_tuning, model_use = train_in_own_process(
            run.context, run.settings, samples, work=work, models=run.home.models, report=report
        )
    else:
        fine_tuning, model_use = _fine_tune_here(run, samples, work, report)
    for step, loss in fine_tuning.losses:
        if step not in reported:  # but by an earlier attempt, to a run that came to nothing
            tracked.log_metrics(step, {"loss": loss})
    return fine_tuning, model_use


def _has_own_process(run: StageRun) -> bool:
    # A cell is one of dozens, and a process imports for longer than a cell of a small model trains.
    placement, is_cell = run.settings.execution.training, run.partition is not None
    return placement.num_processes > 1 or (placement.own_process and not is_cell)


def _fine_tune_here(
    run: StageRun, samples: Sequence[Sample], work: Path, report: Report
) -> tuple[FineTuning, ModelUse]:
    from circuitseer_assets.method.checkpoint import fine_tune
    from circuitseer_assets.method.forwards import count_forwards

    base_model = load_language_model(run.settings.base_model, cache=run.home.models)
    with count_forwards(base_model.model) as counted:
        fine_tuning = fine_tune(
            base_model.model,
            base_model.tokenizer,
            samples,
            run.settings.training,
            run.settings.execution.training,
            output_dir=work,
            prompt_template=run.settings.base_model.prompt_template,
            report=report,
        )
    return fine_tuning, counted.use


def _describe(
    run: StageRun,
    subset: Artifact,
    checkpoint_id: str,
    fine_tuning: FineTuning,
    uri: str,
    model: Path,
    folder: Path,
) -> dict[str, Any]:
    (folder / WEIGHTS_FILE).write_text(json.dumps(_weights(model), indent=1))
    stored = {
        "mlflow_model_uri": uri,
        "losses": fine_tuning.losses,
        "dropped": fine_tuning.dropped,
        "truncated": fine_tuning.truncated,
    }
    (folder / CHECKPOINT_FILE).write_text(json.dumps(stored, indent=1))
    numbers = {
        "num_steps": fine_tuning.num_steps,
        "first_loss_nats": fine_tuning.first_loss_nats,
        "final_loss_nats": fine_tuning.final_loss_nats,
        "num_train_tokens": fine_tuning.num_train_tokens,
    }
    row = {
        "checkpoint_id": checkpoint_id,
        "subset_id": subset.artifact_id,
        "mlflow_model_uri": uri,
        "duration_s": fine_tuning.duration_s,
        **numbers,
    }
    steps, losses = zip(*fine_tuning.losses, strict=True)
    return {
        "data": [WEIGHTS_FILE, CHECKPOINT_FILE],
        "rows": {"checkpoints": pa.Table.from_pylist([row])},
        "summary": {
            "loss_curve_md": to_markdown_image(draw_loss_curve(steps, losses), "training loss"),
            "mlflow_model_uri": uri,
            "num_samples": fine_tuning.num_samples,
            "num_dropped": len(fine_tuning.dropped),
            "num_truncated": len(fine_tuning.truncated),
            **numbers,
        },
    }
