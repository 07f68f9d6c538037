"""Releasing a checkpoint: under a name in MLflow's registry, with all that it was made from."""

import re

from circuitseer_assets.errors import ArtifactError, SettingsError
from circuitseer_assets.method.audit import summarise_lineage
from jobs.lineage import read_lineage
from resources.home import Home
from resources.model_registry import register_model

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def release_checkpoint(home: Home, checkpoint_id: str, name: str) -> str:
    """Returns the URI of the registered model's version that the checkpoint now is.

    The version's description is a summary of the checkpoint's lineage; its tags lead to the
    checkpoint, the subset and the run that trained it. Once released it keeps its version.

    Raises:
        ArtifactError: the id is that of no checkpoint.
        SettingsError: the name could not be part of a URI.
        TrackingError: MLflow cannot be reached, or refuses the name.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"the registered model's name must be letters, digits, dots, dashes and underscores, "
            f"got {name!r}; choose another"
        )
    lineage = read_lineage(home, checkpoint_id)
    checkpoint = lineage.artifacts[0]
    if checkpoint.stage != "checkpoint":
        raise ArtifactError(
            f"what is released must be a checkpoint, got {checkpoint_id} of stage "
            f"{checkpoint.stage}; `circuitseer lineage {checkpoint_id}` names its relatives"
        )
    if lineage.missing:
        raise ArtifactError(
            f"all that {checkpoint_id} was made from must be recorded to be released, "
            f"{', '.join(lineage.missing)} is not; restore the warehouse, or train again"
        )
    subset = next(artifact for artifact in lineage.artifacts if artifact.stage == "subset")
    tags = {
        "artifact_id": checkpoint.artifact_id,
        "subset_id": subset.artifact_id,
        "dagster_run_id": checkpoint.dagster_run_id or "",
    }
    uri = str(lineage.facts[checkpoint.artifact_id]["model"])
    summary = summarise_lineage(lineage, command=f"circuitseer lineage {uri}")
    with home.pruning():  # what is released is never pruned: here it is one or the other
        return register_model(
            home.tracking(),
            uri,
            name,
            description=f"```text\n{summary}\n```",
            tags=tags,
        )
