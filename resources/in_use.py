"""What is in use, whatever its age: what assets show, what is released, what was exported."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from resources.home import Home
from resources.model_registry import artifact_id_of_version
from resources.tracking import Tracking


def shown_artifact_ids(instance: dg.DagsterInstance) -> set[str]:
    """Returns the artifacts that any asset, or any partition of one, last materialised."""
    found = set()
    for key in instance.all_asset_keys():
        for materialisation in _latest(instance, key):
            if "artifact_id" in materialisation.metadata:
                found.add(str(materialisation.metadata["artifact_id"].value))
    return found


def _latest(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> Iterator[dg.AssetMaterialization | Any]:
    event = instance.get_latest_materialization_event(key)
    if event is not None:
        yield event.asset_materialization
    for partition in instance.get_materialized_partitions(key):
        of_it = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
        for record in instance.fetch_materializations(of_it, limit=1).records:
            yield record.asset_materialization


def released_artifact_ids(tracking: Tracking) -> set[str]:
    """Returns the artifacts that the registered models of MLflow, all versions, are made of.

    A version registered by hand is followed through its model or its run; one that leads to no
    artifact was made elsewhere.

    Raises:
        TrackingError: the store cannot be reached: what is released is not known then.
    """
    found = set()
    with tracking.reaching("list the registered models"):
        client = tracking.client()
        token = None
        while True:
            page = client.search_model_versions(max_results=200, page_token=token)
            found |= {artifact_id_of_version(client, version) for version in page}
            token = page.token
            if not token:
                return {artifact_id for artifact_id in found if artifact_id}


def exported_subset_ids(home: Home) -> set[str]:
    """Returns the subsets that have a file in the home's `exports/`, which is named after them."""
    return {path.stem for path in (home.folder / "exports").glob("*") if path.is_file()}
