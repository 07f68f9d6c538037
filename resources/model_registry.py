"""MLflow's model registry: a checkpoint under a name, and the way back to its artifact."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuitseer_assets.errors import ArtifactError
from resources.tracking import Tracking, as_tracking_uri, unless_gone

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOGGED = re.compile(r"models:/(?P<model_id>m-[0-9a-f]{32})")
_OF_RUN = re.compile(r"runs:/(?P<run_id>[0-9a-f]{32})(/.*)?")
_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_NEWEST = re.compile(r"models:/(?P<name>[^/@]+)(/latest)?")

MODEL_URI = re.compile(r"(models|runs):/.+")
"""What is taken for a model's URI, and not for an artifact's id."""


def find_artifact_id(tracking: Tracking, uri: str) -> str:
    """Returns the id of the checkpoint that an MLflow URI leads to.

    Args:
        tracking: the store that knows the model.
        uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/NAME` for its newest version,
            `models:/m-...` or `runs:/...`.

    Raises:
        ArtifactError: the URI is none of these, or its model was not made here.
        TrackingError: the store cannot be reached, or has no such model.
    """
    with tracking.reaching(f"look up {uri}"):
        client = tracking.client()
        if found := _OF_RUN.fullmatch(uri):
            artifact_id = _artifact_id_in(client.get_run(found["run_id"]).data.tags)
        elif found := _LOGGED.fullmatch(uri):
            artifact_id = _artifact_id_in(client.get_logged_model(found["model_id"]).tags)
        elif version := _find_version(client, uri):
            artifact_id = artifact_id_of_version(client, version)
        else:
            raise ArtifactError(
                f"a model's URI must be models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME, "
                f"models:/m-... or runs:/RUN_ID/..., got {uri!r}; copy it from the model's page in "
                f"MLflow"
            )
    if not artifact_id:
        raise ArtifactError(
            f"the model {uri} must lead to a checkpoint by a tag artifact_id, of its version, its "
            f"model or its run, and none has it: it was not trained here; name a checkpoint's id "
            f"instead"
        )
    return artifact_id


def _find_version(client: "MlflowClient", uri: str) -> Any:
    """Returns the version of a registered model that a URI names; None where it names none."""
    if found := _VERSION.fullmatch(uri):
        return client.get_model_version(found["name"], found["version"])
    if found := _ALIAS.fullmatch(uri):
        return client.get_model_version_by_alias(found["name"], found["alias"])
    if found := _NEWEST.fullmatch(uri):
        versions = client.search_model_versions(f"name = '{found['name']}'")
        if not versions:
            raise ArtifactError(
                f"the registered model {found['name']} must have a version, and has none; "
                f"`circuitseer release {found['name']}` makes one"
            )
        return max(versions, key=lambda one: int(one.version))
    return None


@dataclass(frozen=True, slots=True)
class Release:
    """What a version of a registered model holds.

    Attributes:
        uri: of the version.
        source: the model it says it is, `models:/m-...`.
        location: where its files are taken from.
        logged_location: where those of that model lie.
    """

    uri: str
    source: str
    location: str
    logged_location: str


def find_release(tracking: Tracking, uri: str) -> Release | None:
    """Returns what the version that a URI names holds; None where it names no version.

    Raises:
        ArtifactError: the registered model has no version.
        TrackingError: the store cannot be reached, or has no such model.
    """
    with tracking.reaching(f"look up {uri}"):
        client = tracking.client()
        if _LOGGED.fullmatch(uri) or _OF_RUN.fullmatch(uri):
            return None
        version = _find_version(client, uri)
        if version is None:
            return None
        logged = _LOGGED.fullmatch(version.source or "")
        model = unless_gone(client.get_logged_model, logged["model_id"]) if logged else None
        return Release(
            uri=f"models:/{version.name}/{version.version}",
            source=version.source or "",
            location=client.get_model_version_download_uri(version.name, version.version),
            logged_location=model.artifact_location if model else "",
        )


def artifact_id_of_version(client: "MlflowClient", version: Any) -> str | None:
    """Returns the artifact that a version of a registered model is; None if it leads to none.

    One that was not registered by `release_checkpoint` is followed through its model or its run.
    """
    if artifact_id := _artifact_id_in(version.tags):
        return artifact_id
    source = version.source or ""
    if logged := _LOGGED.fullmatch(source):
        model = unless_gone(client.get_logged_model, logged["model_id"])
        if model is not None:
            return _artifact_id_in(model.tags)
    of_run = _OF_RUN.fullmatch(source)
    run_id = of_run["run_id"] if of_run else version.run_id
    run = unless_gone(client.get_run, run_id) if run_id else None
    return _artifact_id_in(run.data.tags) if run is not None else None


def _artifact_id_in(tags: Mapping[str, str]) -> str | None:
    return tags.get("artifact_id")


def register_model(
    tracking: Tracking, uri: str, name: str, *, description: str, tags: Mapping[str, str]
) -> str:
    """Returns the URI of the version of the registered model that a logged model now is.

    A model that has a version under this name already keeps it, with the new description and tags.

    Args:
        tracking: the store that holds the model.
        uri: `models:/m-...`, as a checkpoint is logged.
        name: of the registered model; it is made at its first version.
        description: of the version.
        tags: of the version.

    Raises:
        ArtifactError: the URI is that of no logged model.
        TrackingError: the store cannot be reached, or refuses the name.
    """
    logged = _LOGGED.fullmatch(uri)
    if logged is None:
        raise ArtifactError(f"a checkpoint's model must be models:/m-..., got {uri!r}; train again")
    with tracking.reaching(f"register {uri} as {name!r}"), as_tracking_uri(tracking.uri):
        client = tracking.client()
        model = client.get_logged_model(logged["model_id"])
        is_new = not client.search_registered_models(f"name = '{name}'")
        if is_new:
            client.create_registered_model(name)
        try:
            versions = client.search_model_versions(f"name = '{name}'")
            version = next((v for v in versions if v.source == uri), None)
            if version is None:
                version = client.create_model_version(
                    name,
                    uri,
                    run_id=model.source_run_id,
                    model_id=model.model_id,
                    description=description,
                    tags=dict(tags),
                )
            else:
                client.update_model_version(name, version.version, description)
                for key, value in tags.items():
                    client.set_model_version_tag(name, version.version, key, value)
        except Exception:
            if is_new:  # no name is left that has no version
                client.delete_registered_model(name)
            raise
        # The model's own page tells of its newest version; every version keeps its own lineage.
        client.update_registered_model(name, description)
    return f"models:/{name}/{version.version}"
