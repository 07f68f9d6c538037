"""What every asset carries in the UI beside its own words: owners, tags, its table's columns."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from circuitseer_assets.assets.tables import table_of

STAGE_TAG, PART_TAG, MODEL_TAG = (
    f"circuitseer/{name}" for name in ("stage", "part", "runs_a_model")
)
# Groups that are beside the graph; those of the first two have no stage.
NO_STAGES = ("settings", "dbt_models")
CELLS = ("sweep", "study")


def labelled(assets: Sequence[Any], owners: Sequence[str]) -> list[dg.AssetsDefinition]:
    """Returns the assets with their owners, tags to filter by, and their tables' columns."""

    def label(spec: dg.AssetSpec) -> dg.AssetSpec:
        stage = find_stage(spec)
        group = spec.group_name or ""
        return spec.merge_attributes(
            owners=list(owners),
            tags={
                STAGE_TAG: stage or group,
                PART_TAG: group if group in (*NO_STAGES, *CELLS) else "graph",
                MODEL_TAG: "yes" if "pytorch" in spec.kinds else "no",
            },
            metadata=table_of(stage).described() if stage else {},
        )

    return [definition.map_asset_specs(label) for definition in assets]


def find_stage(spec: dg.AssetSpec) -> str | None:
    """Returns the stage whose table the asset is, of the graph or in a cell; None for others."""
    return None if spec.group_name in NO_STAGES else spec.key.path[-1]
