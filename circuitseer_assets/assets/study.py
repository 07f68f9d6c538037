"""The study: every way to select with every seed, and what may be said of their differences.

A cell is one method with one seed, through selection, training and evaluation by the same stage
functions as the graph. Corpus, pool and ranking are the graph's own.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.assets import checkpoint, evaluation, sample_scores, study_cell, subset
from circuitseer_assets.assets.cells import make_cell_asset, make_training_cells
from circuitseer_assets.assets.evaluation import OUTCOMES_FILE, questions_of
from circuitseer_assets.assets.stage import Made, Materialised, StageRun, latest_artifact
from circuitseer_assets.assets.study_cell import LOSSES_FILE, load_cell, make_study_cell
from circuitseer_assets.assets.subset import MEMBERS_FILE
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.figures import to_markdown_image
from circuitseer_assets.method.study import Floats
from circuitseer_assets.method.study_methods import METHODS, cell_slice, find_method
from circuitseer_assets.method.study_report import (
    StudyCell,
    StudyData,
    analyse_study,
    draw_study,
    format_study,
)
from circuitseer_assets.records import Artifact, PoolSize, artifact_id_of
from circuitseer_assets.settings import StudySettings
from resources.home import Home
from resources.pool_scores import measure_pool

GROUP = "study"
METHOD, SEED = "method", "seed"
CODE_VERSION = "5"
REPORT_FILE = "study.md"
FIGURE_FILE = "study.png"
COMPARISONS_FILE = "study_comparisons.parquet"
_CODE_VERSIONS = {
    "sample_scores": sample_scores.CODE_VERSION,
    "subset": subset.CODE_VERSION,
    "checkpoint": checkpoint.CODE_VERSION,
    "evaluation": evaluation.CODE_VERSION,
    "study_cell": study_cell.CODE_VERSION,
}
CELL_STAGES = tuple(_CODE_VERSIONS)
LEFT_OUT_TAG = "circuitseer/left_out"
"""A run's tag with the methods that could not be run, each with its reason, as JSON."""


def make_study(settings: StudySettings) -> list[dg.AssetsDefinition]:
    """Returns the study's assets: the cells', partitioned by method and seed, and the results."""
    cells = partitions_of(settings)
    return [
        make_cell_asset(
            GROUP,
            sample_scores,
            cells,
            run_of_cell=_run_of,
            upstream=["pool", "head_ranking"],
            kinds={"pytorch", "duckdb"},
            slices=["base_model", "scoring"],
            show=lambda run: run.result(sample_scores.make_sample_scores(run)),
            description="The pool's scores by one method.",
        ),
        *make_training_cells(
            GROUP, cells, run_of_cell=_run_of, scores=dg.AssetKey([GROUP, "sample_scores"])
        ),
        _make_cell(cells),
        _make_results(),
    ]


def partitions_of(settings: StudySettings) -> dg.MultiPartitionsDefinition:
    """Returns the cells: every method there is, with every seed."""
    methods = dg.StaticPartitionsDefinition(list(METHODS))
    seeds = dg.StaticPartitionsDefinition([str(seed) for seed in range(settings.num_seeds)])
    return dg.MultiPartitionsDefinition({METHOD: methods, SEED: seeds})


def cell_key(method: str, seed: int) -> str:
    """Returns the partition of one cell."""
    return str(dg.MultiPartitionKey({METHOD: method, SEED: str(seed)}))


def _run_of(context: dg.AssetExecutionContext, home: Home, slices: Sequence[str]) -> StageRun:
    method, seed = _cell_of(context)

    def find_scores() -> Artifact:
        key = dg.AssetKey([GROUP, "sample_scores"])
        return latest_artifact(context.instance, home, key, context.partition_key)

    changes = _slices_of(home, method, seed, slices, find_scores)
    partitions = dict.fromkeys(CELL_STAGES, context.partition_key)
    return StageRun.of_cell(context, home, GROUP, changes, partitions, *slices)


def _slices_of(
    home: Home,
    method: str,
    seed: int,
    names: Sequence[str],
    find_scores: Callable[[], Artifact],
) -> dict[str, Any]:
    """Returns settings slices as a cell has them; its scores are asked for the pool's size."""

    def measure() -> PoolSize:
        scores = find_scores()
        pool = next(name for name in scores.parents if name.startswith("pool-"))
        return measure_pool(
            home.warehouse,
            scores.settings["scorer_id"],
            scores.settings["tokenizer_id"],
            home.artifacts.folder("pool", pool) / "pool.parquet",
        )

    settings, found = home.settings(), find_method(method)
    return {
        name: cell_slice(found, seed, name, settings.slice(name), measure_pool=measure)
        for name in names
    }


def _cell_of(context: dg.AssetExecutionContext) -> tuple[str, int]:
    key = context.partition_key
    if not isinstance(key, dg.MultiPartitionKey):
        raise ArtifactError(f"a cell of a study has a method and a seed, got {key!r}")
    return key.keys_by_dimension[METHOD], int(key.keys_by_dimension[SEED])


def _make_cell(cells: dg.PartitionsDefinition[Any]) -> dg.AssetsDefinition:
    @dg.asset(
        key=[GROUP, "study_cell"],
        group_name=GROUP,
        partitions_def=cells,
        kinds={"duckdb", "mlflow"},
        deps=[dg.AssetKey([GROUP, "checkpoint"]), dg.AssetKey([GROUP, "evaluation"])],
        code_version=study_cell.CODE_VERSION,
        description="One method with one seed: what it selected, what it cost, what came of it.",
    )
    def cell(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
        run = _run_of(context, home, ["base_model", "decontamination", "evaluation"])
        return run.result(make_study_cell(run, *_cell_of(context)))

    return cell


# the results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """One cell as an artifact, and the folders its problems' outcomes lie in."""

    artifact: Artifact
    folder: Path
    outcomes: Path


def _make_results() -> dg.AssetsDefinition:
    @dg.asset(
        key=[GROUP, "study_results"],
        group_name=GROUP,
        kinds={"duckdb"},
        deps=[dg.AssetKey([GROUP, "study_cell"])],
        code_version=CODE_VERSION,
        description="What the finished cells say: who is better than whom, and how sure that is.",
    )
    def study_results(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
        """Compares the methods of which every seed is done."""
        run = StageRun.of(context, home)
        left_out = json.loads(context.run.tags.get(LEFT_OUT_TAG, "{}"))
        done = make_study_results(run, context.instance, left_out)
        return run.result(done, report=dg.MetadataValue.md((done.folder / REPORT_FILE).read_text()))

    return study_results


def make_study_results(
    run: StageRun, instance: dg.DagsterInstance, left_out: Mapping[str, str]
) -> Materialised:
    """Returns the comparison of all methods that have a cell of every seed by the settings in use.

    Args:
        run: the stage at work.
        instance: where the cells were materialised.
        left_out: the methods that could not be run, each with its reason.

    Raises:
        ArtifactError: `random` has not, or no other method.
    """
    cells = _find_cells(run, instance)
    if "random" not in cells or len(cells) < 2:
        raise ArtifactError(
            f"random and another method must have a cell of every seed, got "
            f"{', '.join(cells) or 'none'}; run `make study`"
        )
    everyone = [cell.artifact for of_method in cells.values() for cell in of_method]
    base = run.ancestor(run.ancestor(everyone[0], "evaluation"), "evaluation")
    parents = [*everyone, base]
    ids = [parent.artifact_id for parent in parents]
    identity = {"left_out": dict(left_out)}
    study_id = artifact_id_of("study_results", identity, ids, CODE_VERSION)

    def compare(folder: Path) -> Made:
        data = _read_study(run, cells, base, left_out)
        analysis = analyse_study(data)
        rows = pa.Table.from_pylist(
            [
                {
                    "study_id": study_id,
                    **asdict(row.comparison),
                    "endpoint": row.endpoint,
                    "verdict": row.verdict,
                }
                for row in analysis.rows
            ]
        )
        pq.write_table(rows, folder / COMPARISONS_FILE)
        figure = draw_study(data, analysis)
        (folder / FIGURE_FILE).write_bytes(figure)
        (folder / REPORT_FILE).write_text(format_study(data, analysis), encoding="utf-8")
        return Made(
            data=[COMPARISONS_FILE],
            summary={
                "pass_at_1_md": to_markdown_image(
                    figure, "Pass@1 of each method minus that of random"
                ),
                "num_methods": len(cells),
                "num_cells": len(everyone),
            },
            rows={"study_comparisons": rows},
        )

    return run.reuse_or_make("study_results", identity, parents, compare, code_version=CODE_VERSION)


def _find_cells(run: StageRun, instance: dg.DagsterInstance) -> dict[str, list[_Cell]]:
    """Returns the cells of every method that has one of every seed, by the settings in use."""
    questions = questions_of(run)
    found: dict[str, list[_Cell]] = {}
    for method in METHODS:
        cells = []
        for seed in range(run.settings.study.num_seeds):
            cell = _find_cell(run, instance, method, seed)
            if cell is None or not _is_current(run, cell, method, seed, questions):
                break
            run.home.artifacts.verify(cell.stage, cell.artifact_id)
            outcomes = run.folder(run.ancestor(cell, "evaluation")) / OUTCOMES_FILE
            cells.append(_Cell(cell, run.folder(cell), outcomes))
        else:
            found[method] = cells
    return found


def _find_cell(
    run: StageRun, instance: dg.DagsterInstance, method: str, seed: int
) -> Artifact | None:
    key = dg.AssetKey([GROUP, "study_cell"])
    try:
        return latest_artifact(instance, run.home, key, cell_key(method, seed))
    except ArtifactError:
        return None


def _is_current(
    run: StageRun, cell: Artifact, method: str, seed: int, questions: Mapping[str, Any]
) -> bool:
    """Returns whether a cell is what `make study` would make of it now.

    That is: of the pool, the ranking, the model, the settings and the code in use.
    """
    made = {stage: run.ancestor(cell, stage) for stage in CELL_STAGES[:-1]} | {"study_cell": cell}
    scores, checkpoint = made["sample_scores"], made["checkpoint"]
    names = ("scoring", "selection", "training")
    changes = _slices_of(run.home, method, seed, names, lambda: scores)
    wanted = run.home.changed(**changes).settings()
    model = run.home.model_identity().items()
    columns = list(run.settings.study.composition_columns)
    return (
        {run.parent("pool").artifact_id, run.parent("head_ranking").artifact_id}
        <= set(scores.parents)
        and all(made[stage].code_version == code for stage, code in _CODE_VERSIONS.items())
        and model <= scores.settings.items()
        and model <= checkpoint.settings.items()
        and scores.settings["scoring"] == wanted.slice("scoring")
        and made["subset"].settings["selection"] == wanted.slice("selection")
        and checkpoint.settings["training"] == wanted.slice("training")
        and dict(made["evaluation"].settings) == questions
        and cell.settings["composition_columns"] == columns
    )


def _read_study(
    run: StageRun,
    cells: Mapping[str, Sequence[_Cell]],
    base: Artifact,
    left_out: Mapping[str, str],
) -> StudyData:
    table = {
        method: [StudyCell.from_json(load_cell(cell.folder)) for cell in of_method]
        for method, of_method in cells.items()
    }
    members = {
        method: [_members(run, cell.subset_id) for cell in of_method]
        for method, of_method in table.items()
    }
    return StudyData(
        cells=table,
        correct=_stack({m: [_share_correct(c.outcomes) for c in row] for m, row in cells.items()}),
        loss_nats=_stack({m: [_losses(c.folder) for c in row] for m, row in cells.items()}),
        base_pass_at_1=fmean(_share_correct(run.folder(base) / OUTCOMES_FILE).values()),
        overlap=_overlaps(members),
        pool_composition=_pool_composition(run),
        left_out=left_out,
    )


Problems = Mapping[tuple[str, str], float]
"""A figure by task and problem."""


def _share_correct(path: Path) -> Problems:
    outcomes = pq.read_table(path, columns=["task", "doc_id", "correct"])
    answers: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in outcomes.to_pylist():
        answers[row["task"], row["doc_id"]].append(row["correct"])
    return {problem: sum(of_it) / len(of_it) for problem, of_it in answers.items()}


def _losses(folder: Path) -> Problems:
    rows = pq.read_table(folder / LOSSES_FILE).to_pylist()
    return {(row["task"], row["doc_id"]): row["loss_nats"] for row in rows}


def _stack(figures: Mapping[str, Sequence[Problems]]) -> dict[str, Floats]:
    """Returns each method's figures, (seeds, problems), the problems in one order for all.

    Raises:
        ArtifactError: cells answered different problems.
    """
    problems = sorted(next(iter(figures.values()))[0])
    for method, of_method in figures.items():
        if any(sorted(cell) != problems for cell in of_method):
            raise ArtifactError(
                f"all cells of a study must answer the same problems, and those of {method} do "
                f"not; run `make study`, which brings every cell up to the settings in use"
            )
    return {
        method: np.array([[cell[problem] for problem in problems] for cell in of_method])
        for method, of_method in figures.items()
    }


def _members(run: StageRun, subset_id: str) -> frozenset[str]:
    folder = run.home.artifacts.folder("subset", subset_id)
    table = pq.read_table(folder / MEMBERS_FILE, columns=["sample_id"])
    return frozenset(table["sample_id"].to_pylist())


def _overlaps(members: Mapping[str, Sequence[frozenset[str]]]) -> dict[tuple[str, str], float]:
    """Returns the mean Jaccard overlap of two methods' subsets with the same seed."""

    def overlap(one: str, other: str) -> float:
        pairs = zip(members[one], members[other], strict=True)
        return fmean(len(a & b) / len(a | b) for a, b in pairs)

    return {pair: overlap(*pair) for pair in itertools.combinations(members, 2)}


def _pool_composition(run: StageRun) -> dict[str, dict[str, int]]:
    pool = run.parent("pool")
    ids = pq.read_table(run.folder(pool) / "pool.parquet", columns=["sample_id"])["sample_id"]
    corpus = run.folder(run.ancestor(pool, "corpus")) / "samples"
    columns = run.settings.study.composition_columns
    return study_cell.count_values(corpus, set(ids.to_pylist()), columns)
