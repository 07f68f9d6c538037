"""Reading a lineage: from an id, or from nothing but a model's URI in MLflow."""

from circuitseer_assets.method.audit import Lineage, trace_lineage
from resources.home import Home
from resources.lineage_facts import read_facts
from resources.model_registry import MODEL_URI, find_artifact_id


def resolve_artifact(home: Home, name: str) -> str:
    """Returns the artifact's id that a name is: the id itself, or what a model's URI leads to.

    Raises:
        ArtifactError: the URI leads to no artifact.
        TrackingError: MLflow cannot be reached, or has no such model.
    """
    is_uri = MODEL_URI.fullmatch(name) is not None
    return find_artifact_id(home.tracking(), name) if is_uri else name


def read_lineage(home: Home, name: str) -> Lineage:
    """Returns everything up and down from an artifact, with what is known of each.

    Args:
        home: where it was made.
        name: the artifact's id, or the MLflow URI of a checkpoint's model.

    Raises:
        ArtifactError: there is no such artifact, or the URI leads to none.
        TrackingError: MLflow cannot be reached, or has no such model.
    """
    artifact_id = resolve_artifact(home, name)
    warehouse = home.warehouse
    upstream = trace_lineage(artifact_id, warehouse.find_artifact)
    descendants = tuple(warehouse.descendants(artifact_id))
    facts = read_facts(warehouse, [*upstream.artifacts, *descendants])
    return Lineage(upstream.artifacts, upstream.missing, descendants, facts)
