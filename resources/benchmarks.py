"""Benchmarks: lm-eval tasks whose problems come from a file, a hub data set or a generator.

A task is a YAML file of lm-eval's own format, the project's (`lm_eval_tasks/`) or the user's. The
project adds a few keys under `metadata`: `columns` it reads, `id_column` where rows have an id,
`solution_column` where they have a worked solution, `generator` and `num_problems` where the
problems are made here. With `path` set, a task reads that
file instead of its hub data set; its columns stay the data set's own.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from circuitseer_assets.errors import CircuitSeerError, EvaluationError
from circuitseer_assets.records import Problem, digest_of
from circuitseer_assets.settings import Benchmark, resolve_path
from resources.artifacts import digest_file

TASKS = Path(__file__).with_name("lm_eval_tasks")

_LOCAL_LOADERS = ("json", "csv", "parquet", "text")


@dataclass(frozen=True)
class Task:
    """A benchmark ready to run: lm-eval's task, the id of each problem, and how it is scored."""

    name: str
    lm_eval_task: Any
    doc_ids: tuple[str, ...]
    metric: str
    filter_name: str
    solution_column: str | None = None

    def problems(self) -> list[Problem]:
        """Returns the problems as the model is asked them, without chat template."""
        docs = zip(self.doc_ids, self.lm_eval_task.eval_docs, strict=True)
        return [
            Problem(self.name, doc_id, str(self.lm_eval_task.doc_to_text(doc)))
            for doc_id, doc in docs
        ]

    def solutions(self) -> list[str]:
        """Returns the worked solution of every problem; none where the rows have no such column."""
        if self.solution_column is None:
            return []
        return [str(doc[self.solution_column]) for doc in self.lm_eval_task.eval_docs]

    def subset(self, max_problems: int | None) -> list[int]:
        """Returns the positions of at most `max_problems` problems, in order.

        Which ones depends on their ids alone: not on the model, the seed, or the problems' order,
        and a larger number keeps those of a smaller one.
        """
        everything = list(range(len(self.doc_ids)))
        if max_problems is None or max_problems >= len(everything):
            return everything
        ranked = sorted(everything, key=lambda i: digest_of([self.name, self.doc_ids[i]]))
        return sorted(ranked[:max_problems])


def known_tasks() -> list[str]:
    """Returns the names of the project's own tasks."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def task_version(benchmark: Benchmark) -> str:
    """Returns a digest of how a task asks and scores: its YAML file and the rules for answers.

    Raises:
        EvaluationError: the task is unknown.
    """
    files = [_yaml_file(benchmark), TASKS / "answers.py"]
    return digest_of([benchmark.task, *(path.read_text(encoding="utf-8") for path in files)])


def benchmark_digest(benchmark: Benchmark) -> str:
    """Returns a digest of what decides a benchmark's problems: its task, files, number and seed.

    Raises:
        EvaluationError: the task is unknown.
        ArtifactError: a file the benchmark names does not exist.
    """
    files = [digest_file(path) for path in benchmark.files()]
    return digest_of([task_version(benchmark), files, benchmark.num_problems, benchmark.seed])


def load_problems(benchmark: Benchmark, *, folder: Path) -> list[Problem]:
    """Returns every problem of a benchmark, as the model is asked it, without chat template.

    Generated problems are written to `folder` as a JSONL file.

    Raises:
        EvaluationError: the task is unknown, or its problems cannot be read.
    """
    return load_task(benchmark, folder=folder).problems()


def load_task(benchmark: Benchmark, *, folder: Path) -> Task:
    """Returns a benchmark as an lm-eval task over its problems.

    Raises:
        EvaluationError: the task is unknown, or its problems cannot be read.
    """
    from lm_eval.api.task import ConfigurableTask

    config = _read_config(benchmark)
    metadata = config.setdefault("metadata", {})
    if config.get("output_type", "generate_until") != "generate_until":
        raise EvaluationError(
            f"output_type of the task {benchmark.task} must be generate_until, got "
            f"{config['output_type']}; Pass@1 needs answers, not choices"
        )
    rows = list(_read_rows(benchmark, config, folder))
    if not rows:
        raise EvaluationError(f"the benchmark {benchmark.task} must hold a problem, got none")
    _check_columns(benchmark, metadata.get("columns", ()), rows[0])
    solution = metadata.get("solution_column")
    split = config.get("test_split") or config.get("validation_split") or "test"
    config |= {"task": benchmark.task, "test_split": split}
    config["custom_dataset"] = _dataset_of(rows, split, benchmark.task)
    try:
        with quiet_lm_eval():
            task = ConfigurableTask(config=config)
        ids = _doc_ids([*task.eval_docs], metadata.get("id_column"), task.doc_to_text)
    except Exception as error:
        raise EvaluationError(
            f"the task {benchmark.task} must render its problems, and fails with "
            f"{type(error).__name__}: {error}; compare its columns with its doc_to_text"
        ) from error
    metric = str(metadata.get("metric") or next(iter(task._metric_fn_list)))
    filters = [entry["name"] for entry in config.get("filter_list") or ()] or ["none"]
    return Task(
        name=benchmark.task,
        lm_eval_task=task,
        doc_ids=ids,
        metric=metric,
        filter_name=str(metadata.get("filter") or filters[0]),
        solution_column=solution if solution in rows[0] else None,
    )


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keeps lm-eval's progress bars and remarks off the terminal; the caller has its own."""
    import lm_eval.api.task as tasks

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, tasks.tqdm
    logger.setLevel(logging.ERROR)
    tasks.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        tasks.tqdm = bar


# configuration ------------------------------------------------------------------------------------


def _yaml_file(benchmark: Benchmark) -> Path:
    path = resolve_path(benchmark.yaml) if benchmark.yaml else TASKS / f"{benchmark.task}.yaml"
    if path.is_file():
        return path
    if benchmark.yaml:
        raise EvaluationError(
            f"decontamination.benchmarks: yaml of {benchmark.task} must name a file, got {path}; "
            f"correct the path (a relative one starts at the project's root)"
        )
    raise EvaluationError(
        f"decontamination.benchmarks: task must be one of {', '.join(known_tasks())}, got "
        f"{benchmark.task!r}; correct it, or name your own YAML file with yaml"
    )


def _read_config(benchmark: Benchmark) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = _yaml_file(benchmark)
    try:
        config: dict[str, Any] = load_yaml(path)
    except Exception as error:
        raise EvaluationError(
            f"{path} must be an lm-eval task in YAML, and fails with "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    return config


def _check_columns(benchmark: Benchmark, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    missing = [column for column in columns if column not in row]
    if missing:
        raise EvaluationError(
            f"the benchmark {benchmark.task} must have the columns {', '.join(columns)}, and lacks "
            f"{', '.join(missing)} (it has {', '.join(row)}); rename them, or write a YAML file of "
            f"your own and name it with yaml"
        )


# rows ---------------------------------------------------------------------------------------------


def _read_rows(
    benchmark: Benchmark, config: dict[str, Any], folder: Path
) -> Iterator[dict[str, Any]]:
    generator = config["metadata"].get("generator")
    if benchmark.num_problems is not None and (generator is None or benchmark.path is not None):
        raise EvaluationError(
            f"decontamination.benchmarks: num_problems is for generated problems, and those of "
            f"{benchmark.task} are read; set evaluation.max_problems instead"
        )
    if benchmark.path is not None:
        yield from _read_file(benchmark)
    elif generator is not None:
        yield from _generate(benchmark, generator, config["metadata"], folder)
    else:
        yield from _read_hub(benchmark, config)


def _read_file(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    from resources.row_files import format_of, read_file

    parameter = "decontamination.benchmarks.path"
    path = resolve_path(str(benchmark.path))
    if not path.is_file():
        raise EvaluationError(
            f"{parameter} of {benchmark.task} must name a file, got {path}; correct the path (a "
            f"relative one starts at the project's root)"
        )
    for position, row in read_file(path, format_of(path, parameter=parameter)):
        if not isinstance(row, dict):
            raise EvaluationError(
                f"every row of {path} must be readable, and number {position} is not; a benchmark "
                f"with rows left out is another benchmark"
            )
        yield row


def _generate(
    benchmark: Benchmark, generator: str, metadata: Mapping[str, Any], folder: Path
) -> Iterator[dict[str, Any]]:
    from resources.corpora import held_out_problems

    number = benchmark.num_problems or int(metadata["num_problems"])
    rows = list(held_out_problems(generator, number, seed=benchmark.seed))  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark.task}-{number}-{benchmark.seed}.jsonl"
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)
    yield from rows


def _read_hub(benchmark: Benchmark, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    arguments = dict(config.get("dataset_kwargs") or {})
    name = config.get("dataset_path")
    is_local = name in _LOCAL_LOADERS or "data_files" in arguments or Path(str(name)).exists()
    if not name:
        raise EvaluationError(
            f"the task {benchmark.task} must have a dataset_path, or its benchmark a path"
        )
    if not is_local and "revision" not in arguments:
        raise EvaluationError(
            f"dataset_kwargs.revision of the task {benchmark.task} must name a commit of {name}, "
            f"got none; without it the benchmark may change from one run to the next"
        )
    split = config.get("test_split") or config.get("validation_split") or "test"
    try:
        yield from load_dataset(name, config.get("dataset_name"), split=split, **arguments)
    except CircuitSeerError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise EvaluationError(
            f"the benchmark {benchmark.task} must be readable from the data set {name}, and is not "
            f"({type(error).__name__}: {first}); check the connection and HF_TOKEN, or set "
            f"decontamination.benchmarks.path to a local copy"
        ) from error


def _dataset_of(rows: Sequence[Mapping[str, Any]], split: str, task: str) -> Any:
    from datasets import Dataset, DatasetDict

    try:
        dataset = DatasetDict({split: Dataset.from_list([dict(row) for row in rows])})
    except Exception as error:
        raise EvaluationError(
            f"every row of the benchmark {task} must have the same columns and types, and one has "
            f"not: {error}"
        ) from error
    return lambda **_: dataset


def _doc_ids(
    docs: Sequence[Mapping[str, Any]], id_column: str | None, render: Any
) -> tuple[str, ...]:
    """Returns an id a problem: its row's own, else a digest of its text; repeats are numbered."""
    seen: dict[str, int] = {}
    ids: list[str] = []
    for doc in docs:
        own = doc.get(id_column) if id_column else None
        doc_id = str(own) if own is not None else digest_of([str(render(doc))])
        seen[doc_id] = seen.get(doc_id, 0) + 1
        ids.append(doc_id if seen[doc_id] == 1 else f"{doc_id}-{seen[doc_id]}")
    return tuple(ids)
