"""Evaluation with lm-eval: a model's answers to the problems of benchmarks, each an outcome.

lm-eval loads the task, builds the prompts and scores the answers; the answers come from
`resources.generation`. Every repeat is a pass of its own, with its own seed, so that repeat i is
the same whatever the number of repeats.
"""

import contextlib
import gc
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.records import Outcome
from circuitseer_assets.settings import Benchmark, EvaluationSettings
from resources.benchmarks import (
    Task,
    known_tasks,
    load_problems,
    load_task,
    quiet_lm_eval,
    task_version,
)

if TYPE_CHECKING:
    from resources.language_model import LanguageModel, ModelFiles

__all__ = ["evaluate", "known_tasks", "load_problems", "task_version"]

Progress = Callable[[str, int, int], None]


def ensure_backend(settings: EvaluationSettings) -> None:
    """Returns if what answers is installed.

    Raises:
        EvaluationError: it is an extra that is not.
    """
    if settings.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise EvaluationError(
            "evaluation.backend must be hf where vLLM is not installed, got vllm; install it with "
            "`uv pip install -e '.[vllm]'`, or set evaluation.backend to hf"
        )


def evaluate(
    language_model: "LanguageModel | ModelFiles",
    benchmarks: Sequence[Benchmark],
    settings: EvaluationSettings,
    *,
    folder: Path,
    report_progress: Progress | None = None,
    responses: Path | None = None,
) -> list[Outcome]:
    """Returns the outcome of every repeat of every problem of `benchmarks`.

    They come from a loaded model, or from the files of one that vLLM loads, as `settings.backend`
    says. Answers are greedy at temperature 0, else sampled with `settings.seed`. A response is
    truncated when it did not end within `max_new_tokens`, or within the model's context.
    `report_progress` gets a task's name, the number of answers so far, and the number there will
    be. The responses themselves go to `responses`, where it is set, as JSON lines.

    Raises:
        EvaluationError: a task is unknown, its problems cannot be read, its metric is not
            right-or-wrong, or the backend is not installed.
    """
    ensure_backend(settings)
    with quiet_lm_eval():
        model = _answering_model(language_model, settings)
    outcomes = []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(responses.open("w", encoding="utf-8")) if responses else None
        for benchmark in benchmarks:
            task = load_task(benchmark, folder=folder)
            for outcome, response in _evaluate_task(model, task, settings, report_progress):
                outcomes.append(outcome)
                if file is not None:
                    line = {**asdict(outcome), "response": response}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    del model
    gc.collect()  # an engine holds its memory until nobody holds it
    return outcomes


def _answering_model(
    language_model: "LanguageModel | ModelFiles", settings: EvaluationSettings
) -> Any:
    from resources.language_model import LanguageModel

    if not isinstance(language_model, LanguageModel):
        from resources.vllm_generation import AnsweringEngine

        return AnsweringEngine(language_model, batch_size=settings.batch_size)
    from resources.generation import AnsweringModel

    return AnsweringModel(
        language_model.model,
        language_model.tokenizer,
        max_length=language_model.max_length,
        batch_size=settings.batch_size,
        prompt_template=language_model.prompt_template,
    )


def _evaluate_task(
    model: Any,
    task: Task,
    settings: EvaluationSettings,
    report_progress: Progress | None,
) -> Iterator[tuple[Outcome, str]]:
    positions = task.subset(settings.max_problems)
    _configure(task, settings)
    total = len(positions) * settings.num_repeats
    for repeat in range(settings.num_repeats):
        before = repeat * len(positions)

        def report(done: int, before: int = before) -> None:
            if report_progress is not None:
                report_progress(task.name, before + done, total)

        with quiet_lm_eval():
            samples = _run_pass(model, task, positions, settings.seed + repeat, report)
        for sample, truncated in zip(samples, model.truncated, strict=True):
            outcome = Outcome(
                task=task.name,
                doc_id=task.doc_ids[sample["doc_id"]],
                repeat=repeat,
                correct=_is_right(task, sample),
                truncated=truncated,
            )
            yield outcome, sample["resps"][0][0]


def _configure(task: Task, settings: EvaluationSettings) -> None:
    lm_eval_task = task.lm_eval_task
    if settings.num_fewshot and not lm_eval_task.config.fewshot_config.samples:
        raise EvaluationError(
            f"evaluation.num_fewshot must be 0 for the task {task.name}, which has no examples to "
            f"show, got {settings.num_fewshot}; give it fewshot_config.samples in a YAML file"
        )
    own = lm_eval_task.config.generation_kwargs or {}
    sampled = settings.temperature > 0
    generation = {
        "until": own.get("until") or [],
        "max_gen_toks": settings.max_new_tokens,
        "do_sample": sampled,
        "temperature": settings.temperature if sampled else None,
        "top_p": settings.top_p if sampled else None,
        "top_k": 0 if sampled else None,
    }
    lm_eval_task.set_config("generation_kwargs", generation)
    lm_eval_task.set_config("num_fewshot", settings.num_fewshot)
    lm_eval_task.set_fewshot_seed(settings.seed)


def _run_pass(
    model: Any, task: Task, positions: list[int], seed: int, report: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Returns lm-eval's record of one answer to each problem, in the order of `positions`."""
    import lm_eval
    import torch

    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        model.begin_pass(seed, report)
        results = lm_eval.evaluate(
            lm=model,
            task_dict={"tasks": {task.name: task.lm_eval_task}},
            samples={task.name: positions},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=model.has_template,
            fewshot_as_multiturn=True,
        )
    samples = [s for s in results["samples"][task.name] if s["filter"] == task.filter_name]
    if len(samples) != len(positions):
        raise EvaluationError(
            f"the task {task.name} must score every problem with its filter {task.filter_name}, "
            f"and scored {len(samples)} of {len(positions)}; set metadata.filter in its YAML file"
        )
    return samples


def _is_right(task: Task, sample: dict[str, Any]) -> bool:
    value = sample.get(task.metric)
    if value not in (0, 1):
        raise EvaluationError(
            f"the metric {task.metric} of the task {task.name} must be 0 or 1 for each problem, "
            f"got {value!r}; name another with metadata.metric in its YAML file"
        )
    return bool(value)
