"""Where a corpus's rows come from: files, the Hugging Face hub, or a generator of problems.

Every reader is a stream of (source, position, row). Generated problems are split by template:
those of the evaluation are never drawn for a corpus.
"""

import hashlib
import itertools
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, assert_never

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import RawRow, UnreadableRow
from circuitseer_assets.method.word_problems import generate_problems, plant_wrong_step
from circuitseer_assets.records import PLANTED_NOISE_COLUMN, digest_of
from circuitseer_assets.settings import (
    Columns,
    CorpusSettings,
    FilesCorpus,
    HubCorpus,
    ReasoningGymCorpus,
    WordProblemsCorpus,
)
from resources.row_files import expand_paths, format_of, read_file

Split = Literal["train", "held_out"]
EVALUATION_HELD_OUT_SHARE = 0.2


def read_rows(settings: CorpusSettings) -> Iterator[RawRow]:
    """Returns a stream of the corpus's raw rows, `max_rows` of them at most.

    Raises:
        CorpusError: while reading, if the corpus cannot be read or lacks a mapped column.
    """
    rows: Iterator[RawRow]
    match settings:
        case FilesCorpus():
            rows = _read_files(settings)
        case HubCorpus():
            rows = _read_hub(settings)
        case WordProblemsCorpus():
            rows = _read_word_problems(settings)
        case ReasoningGymCorpus():
            rows = _read_reasoning_gym(settings)
        case _:
            assert_never(settings)
    return itertools.islice(rows, settings.max_rows)


def columns_of(settings: CorpusSettings) -> Columns:
    """Returns which columns of the corpus's rows hold prompt, response and answer, or the chat."""
    match settings:
        case FilesCorpus() | HubCorpus():
            return settings.columns
        case WordProblemsCorpus():
            return Columns(prompt="prompt", response="response", answer="answer")
        case ReasoningGymCorpus():
            return Columns(prompt="question", response="answer_cot", answer="answer")
        case _:
            assert_never(settings)


def corpus_files(settings: CorpusSettings) -> list[Path]:
    """Returns the local files whose content is part of the corpus's identity, in reading order.

    Raises:
        CorpusError: a path is missing or a folder, or a glob matches nothing.
    """
    if isinstance(settings, FilesCorpus):
        return expand_paths(settings.paths, parameter="corpus.paths")
    return []


def newest_revision(settings: HubCorpus) -> str:
    """Returns the commit that the data set's default branch on the hub is at now.

    Raises:
        CorpusError: the hub cannot be asked, or has no such data set.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(settings.repo_id).sha)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise CorpusError(
            f"corpus.repo_id must name a data set on a hub that can be reached, got "
            f"{settings.repo_id} ({reason}); correct it, or check the network and HF_TOKEN"
        ) from error


def held_out_problems(
    kind: Literal["word_problems", "gsm_symbolic"], num_problems: int, *, seed: int
) -> Iterator[dict[str, Any]]:
    """Returns problems of templates that no corpus draws, for evaluation.

    Each has `doc_id`, `problem`, `answer`, `solution`, `family`, `template` and, of
    `word_problems`, `num_steps`. Problem number i depends on the kind, the seed and i only.
    """
    if kind == "word_problems":
        for index, problem in enumerate(
            generate_problems(num_problems, seed=seed, split="held_out")
        ):
            yield {
                "doc_id": f"word_problems-{seed}-{index}",
                "problem": problem.prompt,
                "answer": problem.answer,
                "solution": problem.response,
                "family": problem.family,
                "template": problem.template_id,
                "num_steps": problem.num_steps,
            }
        return
    rows = _gsm_symbolic_rows(num_problems, seed, "held_out", EVALUATION_HELD_OUT_SHARE)
    for index, row in enumerate(rows):
        yield {
            "doc_id": f"gsm_symbolic-{seed}-{index}",
            "problem": row["question"],
            "answer": row["answer"],
            "solution": row["answer_cot"],
            "family": "gsm_symbolic",
            "template": row["template"],
        }


# files --------------------------------------------------------------------------------------------


def _read_files(settings: FilesCorpus) -> Iterator[RawRow]:
    files = corpus_files(settings)
    names = _source_names(files)
    for path, name in zip(files, names, strict=True):
        is_auto = settings.format == "auto"
        format_name = format_of(path, parameter="corpus.format") if is_auto else settings.format
        rows = ((name, position, row) for position, row in read_file(path, format_name))
        yield from _with_columns_checked(rows, settings.columns, str(path))


def _source_names(files: list[Path]) -> list[str]:
    """Returns the files' names where they are distinct, else their paths below a common folder.

    The folder itself is left out, so that a corpus is the same corpus on another machine.
    """
    names = [path.name for path in files]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(common).as_posix() for path in files]


def _with_columns_checked(rows: Iterable[RawRow], columns: Columns, where: str) -> Iterator[RawRow]:
    """Returns the rows as they are, once the first of them is seen to have every mapped column."""
    is_checked = False
    for source, position, row in rows:
        if not is_checked and not isinstance(row, UnreadableRow):
            _check_columns(row, columns, where)
            is_checked = True
        yield source, position, row


def _check_columns(row: Mapping[str, Any], columns: Columns, where: str) -> None:
    for parameter, column in columns.model_dump(exclude_none=True).items():
        if column not in row:
            raise CorpusError(
                f"corpus.columns.{parameter} must name a column of {where}, got {column!r}; "
                f"choose one of {', '.join(repr(name) for name in row)}"
            )


# Hugging Face hub ---------------------------------------------------------------------------------


def _read_hub(settings: HubCorpus) -> Iterator[RawRow]:
    where = f"{settings.repo_id}@{settings.revision}"
    rows = _without_hub_errors(settings, where)
    numbered = ((settings.repo_id, position, row) for position, row in enumerate(rows))
    yield from _with_columns_checked(numbered, settings.columns, where)


def _without_hub_errors(settings: HubCorpus, where: str) -> Iterator[Mapping[str, Any]]:
    """Returns the data set's rows; any of the many errors of hub and network is a `CorpusError`."""
    try:
        yield from _open_hub_dataset(settings)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        fetch = (
            f"fetch it with `hf download --repo-type dataset {settings.repo_id} "
            f"--revision {settings.revision}`"
        )
        if _is_offline():
            remedy = f"{fetch} where the hub can be reached, or unset HF_HUB_OFFLINE"
        else:
            remedy = (
                "correct repo_id, config_name, split or revision, check the network and HF_TOKEN, "
                f"or {fetch} beforehand and set HF_HUB_OFFLINE=1"
            )
        raise CorpusError(
            f"corpus.repo_id must name a data set that can be read, got {where}, split "
            f"{settings.split!r} ({reason}); {remedy}"
        ) from error


def _open_hub_dataset(settings: HubCorpus) -> Iterable[Mapping[str, Any]]:
    """Returns the data set as a stream.

    Offline it is read from the hub's cache, at the pinned revision: `datasets` itself would fall
    back to whatever version it last prepared.
    """
    import datasets
    from huggingface_hub import snapshot_download

    path, revision = settings.repo_id, settings.revision
    if _is_offline():
        path = snapshot_download(
            path, repo_type="dataset", revision=revision, local_files_only=True
        )
    stream = datasets.load_dataset(
        path, settings.config_name, split=settings.split, revision=revision, streaming=True
    )
    rows: Iterable[Mapping[str, Any]] = stream.decode(False)
    return rows


def _is_offline() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


# generators ---------------------------------------------------------------------------------------


def _read_word_problems(settings: WordProblemsCorpus) -> Iterator[RawRow]:
    problems = generate_problems(
        settings.num_samples,
        seed=settings.seed,
        split="train",
        families=settings.families,
        min_steps=settings.min_steps,
        max_steps=settings.max_steps,
    )
    for position, problem in enumerate(problems):
        is_wrong = (
            random.Random(f"{settings.seed}:wrong:{position}").random() < settings.wrong_share
        )
        if is_wrong:
            problem = plant_wrong_step(problem, seed=settings.seed)
        row: dict[str, Any] = {
            "prompt": problem.prompt,
            "response": problem.response,
            "answer": problem.answer,
            "family": problem.family,
            "template_id": problem.template_id,
            "num_steps": problem.num_steps,
        }
        if settings.wrong_share:
            row[PLANTED_NOISE_COLUMN] = is_wrong
        yield problem.family, position, row


def _read_reasoning_gym(settings: ReasoningGymCorpus) -> Iterator[RawRow]:
    rows = _gsm_symbolic_rows(settings.num_samples, settings.seed, "train", settings.held_out_share)
    for position, row in enumerate(rows):
        yield settings.dataset, position, row


def gsm_symbolic_templates(split: Split, held_out_share: float) -> list[int]:
    """Returns the numbers of the templates of one split.

    The templates with the smallest digests are held out: the same ones for every seed, and with a
    larger share the same ones and more.
    """
    templates = sorted(
        _gsm_symbolic_generators(), key=lambda template: digest_of(["gsm_symbolic", template])
    )
    num_held_out = min(max(round(held_out_share * len(templates)), 1), len(templates) - 1)
    chosen = templates[:num_held_out] if split == "held_out" else templates[num_held_out:]
    return sorted(chosen)


def _gsm_symbolic_rows(
    num_rows: int, seed: int, split: Split, held_out_share: float
) -> Iterator[dict[str, Any]]:
    """Returns rows of reasoning-gym's `gsm_symbolic`; row i depends on seed, split and i only.

    The templates are re-worded problems of GSM8K's test set: a model trained on them has seen those
    problems with other numbers, so `gsm8k` does not measure it fairly.

    Deviation: the package draws from all templates, seeds row i with seed + i, so that neighbouring
    seeds share rows, and ends each question with a sentence on the answer's form, which here is the
    evaluation's to say.
    """
    generators = _gsm_symbolic_generators()
    templates = gsm_symbolic_templates(split, held_out_share)
    for index in range(num_rows):
        key = f"gsm_symbolic:{split}:{seed}:{index}"
        rng = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
        template = rng.choice(templates)
        example = generators[template](rng, 1.0)
        answer = str(example["answer"])
        yield {
            "question": example["question"],
            "answer_cot": _with_final_answer(example["metadata"]["answer_cot"], answer),
            "answer": answer,
            "template": template,
        }


def _with_final_answer(solution: str, answer: str) -> str:
    """Returns the solution with `#### answer` as its last line; a few templates end in `16.0`."""
    steps, _, _ = solution.partition("####")
    return f"{steps.rstrip()}\n#### {answer}"


def _gsm_symbolic_generators() -> dict[int, Callable[[random.Random, float], dict[str, Any]]]:
    """Returns those of the package's 100 templates that it does not mark as faulty, by number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
            GSMSymbolicDataset,
            GSMSymbolicDatasetConfig,
            tasks_ok,
        )

    generators = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    return {template: generators[template] for template in tasks_ok}
