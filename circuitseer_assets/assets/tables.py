"""The table that each stage's artifact is: its columns, how many rows, and where these come from.

An asset of a cell or of the graph shows the same table; only whose columns it names differs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from circuitseer_assets.errors import ArtifactError
from resources.table_columns import columns_of

CountRows = Callable[[Path, Mapping[str, Any]], int]
"""Takes an artifact's folder and its summary; returns how many rows the artifact has."""


@dataclass(frozen=True)
class StageTable:
    """The table of the warehouse in which an artifact's rows lie.

    `columns_from` says of a column which columns of which assets decide it, each as `asset.column`;
    an asset above, not always the next one: a score stands on the corpus's text.
    """

    name: str
    count_rows: CountRows
    columns_from: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def schema(self) -> dg.TableSchema:
        """Returns the columns with types and descriptions."""
        return dg.TableSchema(
            columns=[
                dg.TableColumn(
                    column.name,
                    type=column.data_type,
                    description=column.description,
                    constraints=dg.TableColumnConstraints(nullable=column.is_nullable),
                )
                for column in columns_of(self.name)
            ]
        )

    def described(self) -> dict[str, Any]:
        """Returns what is known of the table before anything is made."""
        return {
            "dagster/column_schema": self.schema(),
            "dagster/table_name": f"warehouse.main.{self.name}",
        }

    def measured(
        self, folder: Path, summary: Mapping[str, Any], key_of: Callable[[str], dg.AssetKey]
    ) -> dict[str, Any]:
        """Returns what is known of it once an artifact is made; `key_of` finds an asset's key."""
        known = {**self.described(), "dagster/row_count": self.count_rows(folder, summary)}
        if not self.columns_from:
            return known
        lineage = dg.TableColumnLineage(
            {
                column: [_dependency(source, key_of) for source in sources]
                for column, sources in self.columns_from.items()
            }
        )
        return {**known, "dagster/column_lineage": lineage, **shown_lineage(lineage)}


def shown_lineage(lineage: dg.TableColumnLineage) -> dict[str, Any]:
    """Returns the lineage as something to read: the UI that is free keeps it, and hides it."""
    sources = {
        column: sorted(f"{s.asset_key.to_user_string()}.{s.column_name}" for s in of_column)
        for column, of_column in sorted(lineage.deps_by_column.items())
    }
    return {"columns_come_from": dg.MetadataValue.json(sources)}


def _dependency(source: str, key_of: Callable[[str], dg.AssetKey]) -> dg.TableColumnDep:
    asset, _, column = source.rpartition(".")
    return dg.TableColumnDep(key_of(asset), column)


def _rows_of(file: str) -> CountRows:
    return lambda folder, summary: int(pq.read_metadata(folder / file).num_rows)


def _sum_of(*names: str) -> CountRows:
    return lambda folder, summary: sum(int(summary[name]) for name in names)


def _one_row(folder: Path, summary: Mapping[str, Any]) -> int:
    return 1


def _num_artifacts(folder: Path, summary: Mapping[str, Any]) -> int:
    return len(json.loads((folder / "lineage.json").read_text())["artifacts"])


def _each(columns: Sequence[str], *sources: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(columns, sources)


_EFFECTS = ("delta_loss_nats", "stderr", "ci_low", "ci_high", "confirmed_delta_nats", "p_holm")
_LOSSES = ("first_loss_nats", "final_loss_nats", "num_steps", "num_train_tokens")
_DIFFERENCES = (
    *("difference", "stderr", "degrees_of_freedom", "ci_low", "ci_high"),
    *("bootstrap_low", "bootstrap_high", "paired_low", "paired_high"),
    *("p_value", "paired_p_value", "p_holm", "smallest_effect", "verdict"),
)

TABLES = {
    "corpus": StageTable("samples", _sum_of("num_samples")),
    "probe_set": StageTable(
        "probe_members",
        _sum_of("num_ranking", "num_confirmation", "num_control"),
        _each(["sample_id"], "corpus.sample_id"),
    ),
    "pool": StageTable(
        "pool_members",
        _rows_of("pool.parquet"),
        _each(["sample_id"], "corpus.sample_id", "corpus.prompt_id", "probe_set.sample_id"),
    ),
    "head_ranking": StageTable(
        "head_importance",
        _rows_of("head_importance.parquet"),
        _each(
            [*_EFFECTS, "delta_control_nats", "is_reasoning_head"],
            *("probe_set.sample_id", "probe_set.kind"),
        ),
    ),
    "sample_scores": StageTable(
        "sample_scores",
        _rows_of("scores.parquet"),
        {
            "sample_id": ["pool.sample_id"],
            # A score is a function of the prompt, and equal prompts share one.
            "score": ["corpus.prompt_id", "head_ranking.is_reasoning_head"],
            "num_tokens": ["corpus.prompt_id"],
        },
    ),
    "subset": StageTable(
        "subset_members",
        _rows_of("subset_members.parquet"),
        {
            "sample_id": ["sample_scores.sample_id"],
            "score": ["sample_scores.score"],
            "weight": ["sample_scores.score"],
            "sampling_key": ["sample_scores.score", "sample_scores.sample_id"],
            "inclusion_probability": ["sample_scores.score"],
        },
    ),
    "checkpoint": StageTable(
        "checkpoints",
        _one_row,
        {"subset_id": ["subset.subset_id"], **_each(_LOSSES, "subset.sample_id")},
    ),
    "evaluation": StageTable(
        "evaluation_outcomes",
        _rows_of("evaluation_outcomes.parquet"),
        {
            "checkpoint_id": ["checkpoint.checkpoint_id"],
            **_each(["model_digest", "correct", "truncated"], "checkpoint.mlflow_model_uri"),
        },
    ),
    "audit": StageTable(
        "artifacts", _num_artifacts, _each(["artifact_id"], "evaluation.evaluation_id")
    ),
    "study_cell": StageTable(
        "study_cells",
        _one_row,
        {
            "checkpoint_id": ["checkpoint.checkpoint_id"],
            "evaluation_id": ["evaluation.evaluation_id"],
            "subset_id": ["checkpoint.subset_id"],
            "pass_at_1": ["evaluation.correct"],
            "held_out_loss_nats": ["checkpoint.mlflow_model_uri"],
            "num_samples": ["subset.sample_id"],
            "num_train_tokens": ["checkpoint.num_train_tokens"],
            "num_steps": ["checkpoint.num_steps"],
        },
    ),
    "study_results": StageTable(
        "study_comparisons",
        _rows_of("study_comparisons.parquet"),
        {
            **_each(["method", "against"], "study/study_cell.method"),
            **_each(
                _DIFFERENCES, "study/study_cell.pass_at_1", "study/study_cell.held_out_loss_nats"
            ),
        },
    ),
}
"""By stage; the last part of an asset's key is its stage."""


def table_of(stage: str) -> StageTable:
    """Returns the table that a stage's artifacts are.

    Raises:
        ArtifactError: the stage has none.
    """
    if stage not in TABLES:
        raise ArtifactError(
            f"every stage must have its table, and {stage!r} has none; add it to TABLES in "
            f"circuitseer_assets/assets/tables.py"
        )
    return TABLES[stage]
