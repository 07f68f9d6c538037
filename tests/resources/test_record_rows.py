"""Records as rows: the warehouse takes them, and nothing of the record is lost."""

from pathlib import Path

import pyarrow as pa
import pytest

from circuitseer_assets.records import (
    Artifact,
    HeadId,
    HeadImportance,
    HeadRanking,
    JointAblation,
)
from circuitseer_assets.settings import GgufModel, HubModel, LocalModel
from resources.record_rows import base_model_rows, head_importance_rows, head_ranking_rows
from resources.warehouse import Warehouse


def record(tmp_path: Path, table: str, rows: pa.Table) -> list[dict]:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    artifact = Artifact("head_ranking-1", "head_ranking", "v", (), {}, "1")
    warehouse.record(artifact, {table: rows})
    return warehouse.query(f"from {table}").to_pylist()


def make_ranking(
    importance: tuple[HeadImportance, ...] = (), joint: JointAblation | None = None
) -> HeadRanking:
    return HeadRanking(
        importance=importance,
        num_layers=2,
        num_heads=3,
        clean_loss_nats=1.0,
        clean_confirmation_loss_nats=2.0,
        clean_control_loss_nats=None,
        boundary_gap_nats=0.5,
        split_half_overlap=0.75,
        joint=joint,
    )


@pytest.mark.parametrize(
    ("model", "source", "name", "revision"),
    [
        (LocalModel(source="local", path="models/tiny"), "local", "models/tiny", None),
        (HubModel(source="hub", repo_id="org/m", revision="0" * 40), "hub", "org/m", "0" * 40),
        (GgufModel(source="gguf", file="deep/m.gguf", package="p"), "gguf", "m.gguf", None),
    ],
)
def test_base_model_is_called_as_the_settings_call_it(
    tmp_path: Path, model, source: str, name: str, revision: str | None
) -> None:
    assert record(tmp_path, "base_models", base_model_rows("digest", model)) == [
        {"model_digest": "digest", "source": source, "name": name, "revision": revision}
    ]


@pytest.mark.parametrize("joint", [None, JointAblation(0.5, (0.25, 0.125), 0.25)])
def test_ranking_keeps_what_its_heads_do_not_say(tmp_path: Path, joint) -> None:
    ranking = make_ranking(joint=joint)
    (row,) = record(tmp_path, "head_rankings", head_ranking_rows("head_ranking-1", ranking))
    for name in ("num_layers", "num_heads", "clean_loss_nats", "clean_control_loss_nats"):
        assert row[name] == getattr(ranking, name)
    assert row["joint_delta_random_nats"] == (list(joint.delta_random_nats) if joint else None)
    assert row["joint_p_value"] == (joint.p_value if joint else None)


def test_every_head_keeps_its_importance_and_its_evidence(tmp_path: Path) -> None:
    chosen = HeadImportance(HeadId(1, 2), 0.5, 0.25, 0.125, 1.0, 8, True, True, 0.375, 0.0625, -1.0)
    other = HeadImportance(HeadId(0, 1), -0.5, 0.75, -2.0, 1.5, 4, False, False)
    rows = head_importance_rows("head_ranking-1", make_ranking((chosen, other)))
    stored = record(tmp_path, "head_importance", rows)
    assert sorted(stored, key=lambda row: -row["layer"]) == [
        {
            "head_ranking_id": "head_ranking-1",
            "layer": 1,
            "head": 2,
            "delta_loss_nats": 0.5,
            "stderr": 0.25,
            "ci_low": 0.125,
            "ci_high": 1.0,
            "num_probes": 8,
            "measured_on_all": True,
            "is_reasoning_head": True,
            "confirmed_delta_nats": 0.375,
            "p_holm": 0.0625,
            "delta_control_nats": -1.0,
        },
        {
            "head_ranking_id": "head_ranking-1",
            "layer": 0,
            "head": 1,
            "delta_loss_nats": -0.5,
            "stderr": 0.75,
            "ci_low": -2.0,
            "ci_high": 1.5,
            "num_probes": 4,
            "measured_on_all": False,
            "is_reasoning_head": False,
            "confirmed_delta_nats": None,
            "p_holm": None,
            "delta_control_nats": None,
        },
    ]
