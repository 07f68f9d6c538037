"""Where the pages of audits lie."""

from pathlib import Path

from circuitseer_assets.errors import ArtifactError
from resources.home import Home

REPORT_FILE = "report.html"


def find_report(home: Home, artifact_id: str) -> tuple[str, Path]:
    """Returns the audit and the path of its page: an audit's own, else the newest made from this.

    Raises:
        ArtifactError: there is no such artifact, no audit was made from it, or its files are gone.
    """
    warehouse = home.warehouse
    artifact = warehouse.find_artifact(artifact_id)
    if artifact is None:
        raise ArtifactError(
            f"ID must be that of a recorded artifact, got {artifact_id!r}; take one from "
            f"circuitseer lineage"
        )
    made = [artifact, *warehouse.descendants(artifact_id)]
    audits = [one for one in made if one.stage == "audit"]
    if not audits:
        raise ArtifactError(
            f"ID must be an audit, or what one was made from, got {artifact_id}; run make run"
        )
    newest = max(audits, key=lambda one: (one.created_at, one.artifact_id))
    home.artifacts.verify("audit", newest.artifact_id)
    path = home.artifacts.folder("audit", newest.artifact_id) / REPORT_FILE
    if not path.is_file():
        raise ArtifactError(
            f"{newest.artifact_id} must have a page, and was made before audits had one; run make "
            f"run to make it anew"
        )
    return newest.artifact_id, path.resolve()
