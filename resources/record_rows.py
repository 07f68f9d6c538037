"""Records as the warehouse's rows, where a table's columns are not the record's own fields."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from circuitseer_assets.records import HeadRanking, ModelUse
from circuitseer_assets.settings import BaseModelSettings, GgufModel, HubModel


def base_model_rows(model_digest: str, settings: BaseModelSettings) -> pa.Table:
    """Returns the row of `base_models`: what the settings call the model with this digest.

    A hub's model is called by its id, a GGUF file by its own name, a folder by its path.
    """
    revision = None
    if isinstance(settings, HubModel):
        name, revision = settings.repo_id, settings.revision
    elif isinstance(settings, GgufModel):
        name = PurePath(settings.file).name
    else:
        name = settings.path
    return pa.table(
        {
            "model_digest": [model_digest],
            "source": [settings.source],
            "name": [name],
            "revision": pa.array([revision], pa.string()),
        }
    )


def artifact_cost_rows(artifact_id: str, duration_s: float, use: ModelUse | None) -> pa.Table:
    """Returns the row of `artifact_costs`; without a model there are no forwards to count."""
    return pa.table(
        {
            "artifact_id": [artifact_id],
            "duration_s": [duration_s],
            "num_forwards": pa.array([use.num_forwards if use else None], pa.float64()),
            "num_tokens": pa.array([use.num_tokens if use else None], pa.int64()),
        }
    )


def artifact_evidence_rows(
    artifact_id: str, manifest_sha256: str, base_model: Mapping[str, Any] | None
) -> pa.Table:
    """Returns the row of `artifact_evidence`; `base_model` is None where no model was read."""
    named = None if base_model is None else json.dumps(base_model, sort_keys=True)
    return pa.table(
        {
            "artifact_id": [artifact_id],
            "manifest_sha256": [manifest_sha256],
            "base_model": pa.array([named], pa.string()),
        }
    )


def head_ranking_rows(head_ranking_id: str, ranking: HeadRanking) -> pa.Table:
    """Returns the row of `head_rankings`: what a ranking says beyond its single heads."""
    joint = ranking.joint
    row = {
        "head_ranking_id": head_ranking_id,
        "num_layers": ranking.num_layers,
        "num_heads": ranking.num_heads,
        "clean_loss_nats": ranking.clean_loss_nats,
        "clean_confirmation_loss_nats": ranking.clean_confirmation_loss_nats,
        "clean_control_loss_nats": ranking.clean_control_loss_nats,
        "boundary_gap_nats": ranking.boundary_gap_nats,
        "split_half_overlap": ranking.split_half_overlap,
        "joint_delta_chosen_nats": joint.delta_chosen_nats if joint else None,
        "joint_delta_random_nats": list(joint.delta_random_nats) if joint else None,
        "joint_p_value": joint.p_value if joint else None,
    }
    return pa.Table.from_pylist([row])


def head_importance_rows(head_ranking_id: str, ranking: HeadRanking) -> pa.Table:
    """Returns the rows of `head_importance`: one for every head of the model."""
    rows = []
    for importance in ranking.importance:
        values = asdict(importance)
        rows.append({"head_ranking_id": head_ranking_id, **values.pop("head"), **values})
    return pa.Table.from_pylist(rows)
