"""The check that the warehouse's rows and the artifacts' files say the same, value by value."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.method.verification import NotCheckedError
from circuitseer_assets.records import Artifact
from resources.pool_scores import read_pool_scores
from resources.record_rows import head_importance_rows, head_ranking_rows
from resources.stored_checks import RESTORE, Store
from resources.subset_chain import load_head_ranking
from resources.table_differences import RowDifference, find_differences

_IMPORTANCE_FILE = "head_importance.parquet"


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the warehouse, and the file with the same rows."""

    name: str
    owner: str
    key: tuple[str, ...]
    read_file: Callable[[Path], pa.Table]


def _parquet(name: str) -> Callable[[Path], pa.Table]:
    return lambda folder: pq.read_table(folder / name)


def _corpus_rows(folder: Path) -> pa.Table:
    return pq.read_table(folder / "samples", columns=["sample_id"])


def _probe_rows(folder: Path) -> pa.Table:
    stored = json.loads((folder / "probe_set.json").read_text())
    kinds = ("ranking", "confirmation", "control")
    rows = [{"sample_id": one, "kind": kind} for kind in kinds for one in stored[kind]]
    return pa.Table.from_pylist(rows)


def _ranking_row(folder: Path) -> pa.Table:
    return head_ranking_rows(folder.name, load_head_ranking(folder))


def _checkpoint_row(folder: Path) -> pa.Table:
    stored = json.loads((folder / "checkpoint.json").read_text())
    said = json.loads((folder / "summary.json").read_text())
    names = ("num_steps", "first_loss_nats", "final_loss_nats", "num_train_tokens")
    row = {"mlflow_model_uri": stored["mlflow_model_uri"], **{name: said[name] for name in names}}
    return pa.Table.from_pylist([{"checkpoint_id": folder.name, **row}])


_TABLES: Mapping[str, Sequence[_Table]] = {
    "corpus": [_Table("corpus_members", "corpus_id", ("sample_id",), _corpus_rows)],
    "probe_set": [_Table("probe_members", "probe_set_id", ("sample_id",), _probe_rows)],
    "pool": [_Table("pool_members", "pool_id", ("sample_id",), _parquet("pool.parquet"))],
    "head_ranking": [
        _Table("head_importance", "head_ranking_id", ("layer", "head"), _parquet(_IMPORTANCE_FILE)),
        _Table("head_rankings", "head_ranking_id", ("head_ranking_id",), _ranking_row),
    ],
    "subset": [
        _Table("subset_members", "subset_id", ("sample_id",), _parquet("subset_members.parquet"))
    ],
    "checkpoint": [_Table("checkpoints", "checkpoint_id", ("checkpoint_id",), _checkpoint_row)],
    "evaluation": [
        _Table(
            "evaluation_outcomes",
            "evaluation_id",
            ("task", "doc_id", "repeat"),
            _parquet("evaluation_outcomes.parquet"),
        )
    ],
}


def check_rows(store: Store) -> Iterator[str]:
    """Returns every value in which the warehouse and an artifact's files differ.

    Raises:
        NotCheckedError: after all findings, where the files of an artifact are not whole.
    """
    not_checked: list[NotCheckedError] = []
    for artifact in store.artifacts:
        try:
            yield from _check_artifact(store, artifact)
        except NotCheckedError as error:
            not_checked.append(error)
    if not_checked:
        raise not_checked[0]


def ranking_contradictions(folder: Path) -> Iterator[RowDifference]:
    """Returns where the two files of a ranking tell of other heads than each other."""
    of_json = head_importance_rows(folder.name, load_head_ranking(folder))
    return find_differences(of_json, pq.read_table(folder / _IMPORTANCE_FILE), ("layer", "head"))


def _check_artifact(store: Store, artifact: Artifact) -> Iterator[str]:
    if artifact.stage == "sample_scores":
        yield from _check_scores(store, artifact)
    for table in _TABLES.get(artifact.stage, ()):
        sql = f"select * from {table.name} where {table.owner} = $id"
        rows = store.home.warehouse.query(sql, {"id": artifact.artifact_id})
        filed = table.read_file(store.folder(artifact))
        for difference in find_differences(rows, filed, table.key):
            yield _say(difference, table.name, table.key, artifact)
    if artifact.stage == "head_ranking":
        for found in ranking_contradictions(store.folder(artifact)):
            layer, head = found.key
            yield (
                f"{found.column or 'the row'} of head {layer}.{head} is {found.first} in "
                f"head_ranking.json and {found.second} in {_IMPORTANCE_FILE} of "
                f"{artifact.artifact_id}: one of them was edited; {RESTORE}"
            )


def _check_scores(store: Store, scores: Artifact) -> Iterator[str]:
    pool = store.folder(store.parent(scores, "pool")) / "pool.parquet"
    scorer_id, tokenizer_id = scores.settings["scorer_id"], scores.settings["tokenizer_id"]
    rows = read_pool_scores(store.home.warehouse, scorer_id, tokenizer_id, pool)
    filed = pq.read_table(store.folder(scores) / "scores.parquet")
    for difference in find_differences(rows, filed, ["sample_id"]):
        yield _say(difference, "sample_scores", ("sample_id",), scores)


def _say(difference: RowDifference, table: str, key: Sequence[Any], artifact: Artifact) -> str:
    where = ", ".join(f"{k} {v}" for k, v in zip(key, difference.key, strict=True))
    of = artifact.artifact_id
    if difference.column is None:
        has, lacks = ("warehouse", "files") if difference.first else ("files", "warehouse")
        return f"{table}: {where} of {of} is in the {has} and not in the {lacks}; {RESTORE}"
    return (
        f"{table}.{difference.column} of {where} is {difference.first} in the warehouse and "
        f"{difference.second} in the files of {of}: one of them was edited; {RESTORE}"
    )
