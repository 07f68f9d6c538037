"""Stage evaluation: Pass@1 of the base model and of the checkpoint, on the same problems."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.assets.checkpoint import load_checkpoint
from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.method.evaluation import TaskSummary, compare, summarise
from circuitseer_assets.method.figures import draw_pass_at_1, to_markdown_image
from circuitseer_assets.records import Artifact, ModelUse, Outcome, artifact_id_of
from circuitseer_assets.settings import BaseModelSettings, LocalModel
from resources.artifacts import digest_files
from resources.benchmarks import benchmark_digest, task_version
from resources.evaluator import ensure_backend, evaluate
from resources.home import Home
from resources.language_model import (
    LanguageModel,
    ModelFiles,
    find_model_files,
    load_language_model,
)
from resources.tracking import TrackedRun
from resources.tracking_inputs import log_benchmarks, log_model_input

CODE_VERSION = "1"
OUTCOMES_FILE = "evaluation_outcomes.parquet"


@dg.asset(
    group_name="evaluation",
    kinds={"pytorch", "duckdb"},
    deps=[
        "checkpoint",
        settings_key("base_model"),
        settings_key("decontamination"),
        settings_key("evaluation"),
    ],
    code_version=CODE_VERSION,
    description="Pass@1 before and after fine-tuning, every answer an outcome.",
)
def evaluation(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Asks base model and checkpoint the same problems."""
    return show_evaluations(
        StageRun.of(context, home, "base_model", "decontamination", "evaluation")
    )


def show_evaluations(run: StageRun) -> dg.MaterializeResult[Any]:
    """Returns what the UI shows of base model and checkpoint, side by side."""
    before, after = make_evaluations(run)
    tasks = _compare(read_outcomes(before.folder), read_outcomes(after.folder))
    shown = [
        (task["task"], name, model["pass_at_1"], model["ci_low"], model["ci_high"])
        for task in tasks
        for name, model in (("base model", task["base"]), ("checkpoint", task["checkpoint"]))
    ]
    image = to_markdown_image(draw_pass_at_1(shown), "Pass@1 before and after")
    return run.result(
        after,
        # Numbers, which the UI plots over time and over the cells of a sweep.
        mean_pass_at_1=dg.MetadataValue.float(_mean_pass_at_1(tasks, "checkpoint")),
        mean_base_pass_at_1=dg.MetadataValue.float(_mean_pass_at_1(tasks, "base")),
        pass_at_1_md=dg.MetadataValue.md(image),
        pass_at_1=dg.MetadataValue.json(tasks),
        base_evaluation_id=dg.MetadataValue.text(before.artifact.artifact_id),
        **_link_to_base(run, before.artifact),
    )


def _link_to_base(run: StageRun, before: Artifact) -> dict[str, Any]:
    # One that was made before evaluations had a run of their own has none.
    if before.mlflow_run_id is None:
        return {}
    url = run.home.tracking().run_url(before.mlflow_run_id)
    return {"base_mlflow_run": dg.MetadataValue.url(url)}


def make_evaluations(run: StageRun) -> tuple[Materialised, Materialised]:
    """Returns the outcomes of the base model and of the latest checkpoint."""
    checkpoint = run.parent("checkpoint")
    questions = questions_of(run)
    before = _evaluate_model(
        run, {**questions, **run.home.model_identity()}, [], run.settings.base_model
    )
    after = _evaluate_model(run, questions, [checkpoint], checkpoint_model(run, checkpoint), before)
    return before, after


def questions_of(run: StageRun) -> dict[str, Any]:
    """Returns what decides the questions asked: tasks, their problems' files, how to answer."""
    tasks = [run.settings.decontamination.benchmark(t) for t in run.settings.evaluation.tasks]
    files = [path for task in tasks for path in task.files()]
    return {
        "evaluation": run.settings.slice("evaluation"),
        "benchmarks": [task.model_dump(mode="json") for task in tasks],
        "benchmark_files": list(digest_files(files).values()),
        "task_versions": [task_version(task) for task in tasks],
    }


def _evaluate_model(
    run: StageRun,
    identity: dict[str, Any],
    parents: Sequence[Artifact],
    model: BaseModelSettings,
    base: Materialised | None = None,
) -> Materialised:
    """Returns the outcomes of one model; `base` is the evaluation of the model it came from."""
    ids = [parent.artifact_id for parent in parents]
    evaluation_id = artifact_id_of("evaluation", identity, ids, CODE_VERSION)

    def ask(folder: Path) -> Made:
        tags = {**run.mlflow_tags(evaluation_id), "checkpoint_id": ids[0] if ids else None}
        tracked = run.track(evaluation_id, tags)
        _log_question(run, tracked, parents)
        made = answer(folder)
        _log_answers(run, tracked, folder)
        return replace(made, mlflow_run_id=tracked.run_id)

    def answer(folder: Path) -> Made:
        settings = run.settings.evaluation
        progress = run.progress(f"evaluation, {'checkpoint' if parents else 'base model'}")

        def ask_all(asked: LanguageModel | ModelFiles) -> list[Outcome]:
            return evaluate(
                asked,
                [run.settings.decontamination.benchmark(task) for task in settings.tasks],
                settings,
                folder=run.home.folder / "benchmarks",
                responses=folder / "responses.jsonl",
                report_progress=lambda task, done, total: progress(done, total),
            )

        outcomes, model_digest, use = _ask_model(run, model, ask_all)
        rows = _outcome_rows(outcomes, evaluation_id, ids, model_digest)
        pq.write_table(rows, folder / OUTCOMES_FILE)
        return Made(
            data=[OUTCOMES_FILE],
            rows={"evaluation_outcomes": rows},
            summary={"num_outcomes": len(outcomes)},
            model_use=use,
        )

    return run.reuse_or_make(
        "evaluation",
        identity,
        parents,
        ask,
        code_version=CODE_VERSION,
        also_from=[base.artifact] if base else [],
    )


def _ask_model(
    run: StageRun,
    model: BaseModelSettings,
    ask_all: Callable[[LanguageModel | ModelFiles], list[Outcome]],
) -> tuple[list[Outcome], str, ModelUse | None]:
    """Returns the answers, the digest of what gave them, and its use, which vLLM does not tell."""
    ensure_backend(run.settings.evaluation)
    if run.settings.evaluation.backend == "vllm":
        files = find_model_files(model, cache=run.home.models)
        return ask_all(files), files.model_digest, None
    from circuitseer_assets.method.forwards import count_forwards

    language_model = load_language_model(model, cache=run.home.models)
    with count_forwards(language_model.model) as counted:
        outcomes = ask_all(language_model)
    model_digest = language_model.model_digest
    del language_model
    gc.collect()
    return outcomes, model_digest, counted.use


def _log_question(run: StageRun, tracked: TrackedRun, checkpoints: Sequence[Artifact]) -> None:
    """Returns when MLflow has who is asked: the settings, and the checkpoint, if it is one."""
    tracked.log_params({"evaluation": run.settings.slice("evaluation")})
    for checkpoint in checkpoints:
        log_model_input(tracked, load_checkpoint(run.folder(checkpoint))["mlflow_model_uri"])


def _log_answers(run: StageRun, tracked: TrackedRun, folder: Path) -> None:
    """Returns when MLflow has what was asked, as data sets, and the figures of every task."""
    rows = pq.read_table(folder / OUTCOMES_FILE, columns=["model_digest"])
    answered_by = rows["model_digest"][0].as_py()
    tracked.log_params({"model_digest": answered_by})
    tasks = summarise(read_outcomes(folder))
    benchmarks = [run.settings.decontamination.benchmark(task.task) for task in tasks]
    log_benchmarks(
        tracked,
        {benchmark.task: benchmark_digest(benchmark) for benchmark in benchmarks},
        {task.task: task.num_problems for task in tasks},
    )
    figures = ("pass_at_1", "ci_low", "ci_high", "truncation_rate")
    numbers = {f"{t.task}/{name}": float(getattr(t, name)) for t in tasks for name in figures}
    numbers["mean_pass_at_1"] = mean(task.pass_at_1 for task in tasks)
    tracked.log_metrics(0, numbers)


def checkpoint_model(run: StageRun, checkpoint: Artifact) -> LocalModel:
    """Returns where a checkpoint is loaded from, as a base model is."""
    base = run.settings.base_model
    uri = load_checkpoint(run.folder(checkpoint))["mlflow_model_uri"]
    return LocalModel(
        source="local",
        path=str(run.home.tracking().model_folder(uri)),
        dtype=base.dtype,
        device=base.device,
        prompt_template=base.prompt_template,
    )


def _outcome_rows(
    outcomes: Sequence[Outcome], evaluation_id: str, checkpoint_ids: list[str], model_digest: str
) -> pa.Table:
    rows = [
        {
            "evaluation_id": evaluation_id,
            "checkpoint_id": checkpoint_ids[0] if checkpoint_ids else None,
            "model_digest": model_digest,
            **asdict(outcome),
        }
        for outcome in outcomes
    ]
    schema = pa.Table.from_pylist(rows).schema
    schema = schema.set(
        schema.get_field_index("checkpoint_id"), pa.field("checkpoint_id", "string")
    )
    return pa.Table.from_pylist(rows, schema=schema)


def read_outcomes(folder: Path) -> list[Outcome]:
    """Returns every answer of an evaluation, from its folder."""
    names = ["task", "doc_id", "repeat", "correct", "truncated"]
    return [
        Outcome(**row) for row in pq.read_table(folder / OUTCOMES_FILE, columns=names).to_pylist()
    ]


def _compare(before: list[Outcome], after: list[Outcome]) -> list[dict[str, Any]]:
    base = {summary.task: summary for summary in summarise(before)}
    tuned = {summary.task: summary for summary in summarise(after)}
    return [
        {
            "task": difference.task,
            "num_problems": difference.num_problems,
            "base": _figures(base[difference.task]),
            "checkpoint": _figures(tuned[difference.task]),
            "difference": asdict(difference),
        }
        for difference in compare(before, after)
    ]


def _mean_pass_at_1(tasks: list[dict[str, Any]], model: str) -> float:
    return float(mean(task[model]["pass_at_1"] for task in tasks))


def _figures(summary: TaskSummary) -> dict[str, Any]:
    return {**asdict(summary), "is_demonstration": summary.is_demonstration}
