"""What the warehouse knows of the artifacts of a lineage besides their settings."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from circuitseer_assets.records import Artifact
from resources.warehouse import Warehouse

_HEADS = """
select
    head_ranking_id as artifact_id,
    list(layer || '.' || head order by layer, head) as reasoning_heads
from head_importance
where is_reasoning_head and list_contains($ids::varchar[], head_ranking_id)
group by all
"""
_SAMPLES = """
select subset_id as artifact_id, count(*) as samples
from subset_members
where list_contains($ids::varchar[], subset_id)
group by all
"""
_CHECKPOINTS = """
select checkpoint_id as artifact_id, mlflow_model_uri as model
from checkpoints
where list_contains($ids::varchar[], checkpoint_id)
"""
_BASE_MODELS = """
select
    artifacts.artifact_id,
    base_models.name || coalesce('@' || base_models.revision, '') as base_model
from artifacts
inner join base_models on artifacts.settings ->> '$.model_digest' = base_models.model_digest
where
    artifacts.stage in ('head_ranking', 'checkpoint')
    and list_contains($ids::varchar[], artifacts.artifact_id)
"""
_PASS_AT_1 = """
select
    evaluation_id as artifact_id,
    map_from_entries(list((task, share) order by task)) as pass_at_1
from (
    select evaluation_id, task, round(avg(correct::integer), 4) as share
    from evaluation_outcomes
    where list_contains($ids::varchar[], evaluation_id)
    group by all
)
group by all
"""


def read_facts(warehouse: Warehouse, artifacts: Sequence[Artifact]) -> dict[str, dict[str, Any]]:
    """Returns what is worth knowing of these artifacts, by id.

    Of a ranking its base model and the reasoning heads, of a subset how many samples it has, of a
    checkpoint its base model and its MLflow model, of an evaluation its own Pass@1 a task.
    """
    ids = [artifact.artifact_id for artifact in artifacts]
    facts: dict[str, dict[str, Any]] = defaultdict(dict)
    with warehouse.connect(read_only=True) as connection:
        for sql in (_BASE_MODELS, _HEADS, _SAMPLES, _CHECKPOINTS, _PASS_AT_1):
            relation = connection.sql(sql, params={"ids": ids})
            for row in relation.to_arrow_table().to_pylist():
                artifact_id = row.pop("artifact_id")
                facts[artifact_id] |= {
                    name: dict(value) if name == "pass_at_1" else value
                    for name, value in row.items()
                }
    return dict(facts)
