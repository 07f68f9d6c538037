"""Stage `evaluation` in, stage `audit` out: everything a figure, checkpoint or subset stands on.

An artifact names its parents; following them gives the whole chain down to the corpus.
"""

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.tables import printable
from circuitseer_assets.records import Artifact

FindArtifact = Callable[[str], Artifact | None]

MAX_SUMMARY = 4_900
"""MLflow's columns for descriptions hold 5,000 characters, which PostgreSQL enforces."""
_LINE = 270  # of a summary, which has 18 of them at most
_BRANCH, _LAST_BRANCH, _BAR, _BLANK = "├─ ", "└─ ", "│  ", "   "


@dataclass(frozen=True, slots=True)
class Lineage:
    """One artifact and everything upstream of it.

    Attributes:
        artifacts: the artifact asked for first, then every other one once, nearest first.
        missing: ids that are named as parents, and of which nothing is recorded.
        descendants: everything made from it, directly and through others.
        facts: what is worth knowing of an artifact besides its settings, such as a ranking's heads,
            by its id.
    """

    artifacts: tuple[Artifact, ...]
    missing: tuple[str, ...] = ()
    descendants: tuple[Artifact, ...] = ()
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def artifact_id(self) -> str:
        """The artifact whose lineage this is."""
        return self.artifacts[0].artifact_id


def trace_lineage(artifact_id: str, find: FindArtifact) -> Lineage:
    """Returns the artifact and everything it was made from, directly and through others.

    Args:
        artifact_id: the artifact, of any stage.
        find: returns the artifact with an id, or None where none is recorded.

    Raises:
        ArtifactError: no artifact has this id.
    """
    start = find(artifact_id)
    if start is None:
        raise ArtifactError(
            f"the id must be that of a recorded artifact, got {artifact_id!r}; take one from the "
            f"table artifacts or from the metadata of an asset"
        )
    found, missing = {artifact_id: start}, []
    nearest = [start]
    while nearest:
        parents = dict.fromkeys(parent for artifact in nearest for parent in artifact.parents)
        unseen = [parent for parent in parents if parent not in found and parent not in missing]
        nearest = []
        for parent in unseen:
            artifact = find(parent)
            if artifact is None:
                missing.append(parent)
            else:
                found[parent] = artifact
                nearest.append(artifact)
    return Lineage(tuple(found.values()), tuple(missing))


def lineage_as_json(lineage: Lineage) -> dict[str, Any]:
    """Returns the lineage as plain JSON values, times in ISO 8601."""
    return {
        "artifact_id": lineage.artifact_id,
        "artifacts": [_artifact_as_json(artifact, lineage.facts) for artifact in lineage.artifacts],
        "missing": list(lineage.missing),
        "descendants": [_artifact_as_json(one, lineage.facts) for one in lineage.descendants],
    }


def format_lineage(lineage: Lineage) -> str:
    """Returns the lineage as a tree of text, each artifact above what it was made from.

    An artifact that was used more than once is written out once, then only named. Below the tree
    stands what was made from it.
    """
    by_id = {artifact.artifact_id: artifact for artifact in lineage.artifacts}
    lines: list[str] = []
    written: set[str] = set()

    def write(artifact_id: str, first_indent: str, indent: str) -> None:
        artifact = by_id.get(artifact_id)
        if artifact is None:
            lines.append(f"{first_indent}{artifact_id} (not recorded)")
            return
        if artifact_id in written:
            lines.append(f"{first_indent}{artifact_id} (see above)")
            return
        written.add(artifact_id)
        lines.append(first_indent + artifact_id)
        rail = _BAR if artifact.parents else _BLANK
        facts = lineage.facts.get(artifact_id, {})
        lines.extend(f"{indent}{rail}{detail}" for detail in _details(artifact, facts))
        for i, parent in enumerate(artifact.parents):
            is_last = i == len(artifact.parents) - 1
            branch, continued = (_LAST_BRANCH, _BLANK) if is_last else (_BRANCH, _BAR)
            write(parent, indent + branch, indent + continued)

    write(lineage.artifact_id, "", "")
    if lineage.descendants:
        lines += ["", f"made from {lineage.artifact_id}:"]
    for descendant in lineage.descendants:
        said = _compact_facts(lineage.facts.get(descendant.artifact_id, {}))
        lines.append(f"  {descendant.artifact_id}" + (f" ({said})" if said else ""))
    return printable("\n".join(line.rstrip() for line in lines))


def summarise_lineage(lineage: Lineage, *, command: str) -> str:
    """Returns what an artifact stands on, in fewer than `MAX_SUMMARY` characters.

    That is what is known of it and of its ranking, the heads among it, and of each stage the
    nearest artifact, with its content and its runs; long lines are cut.

    Args:
        lineage: of the artifact, with facts.
        command: how to see the rest.
    """
    nearest = {artifact.stage: artifact for artifact in reversed(lineage.artifacts)}
    told = [nearest[one] for one in (lineage.artifacts[0].stage, "head_ranking") if one in nearest]
    lines = [lineage.artifact_id]
    for artifact in told:
        facts = lineage.facts.get(artifact.artifact_id, {})
        lines += [_compact_facts({name: value}) for name, value in facts.items()]
    for artifact in reversed(nearest.values()):
        runs = [f"{name} {run_id}" for name, run_id in _runs(artifact).items()]
        lines.append(", ".join([f"{artifact.artifact_id}: content {artifact.data_version}", *runs]))
    lines.append(f"all of it, with settings: {command}")
    cut = (textwrap.shorten(printable(line), _LINE, placeholder=" ...") for line in lines)
    return "\n".join(dict.fromkeys(cut))


def _runs(artifact: Artifact) -> dict[str, str]:
    runs = {"Dagster run": artifact.dagster_run_id, "MLflow run": artifact.mlflow_run_id}
    return {name: run_id for name, run_id in runs.items() if run_id}


def _details(artifact: Artifact, facts: Mapping[str, Any]) -> list[str]:
    versions = [f"content {artifact.data_version}", f"code {artifact.code_version}"]
    if artifact.created_at is not None:
        versions.append(f"made {artifact.created_at:%Y-%m-%d %H:%M:%S} UTC")
    return [
        ", ".join(versions),
        *([_compact_facts(facts)] if facts else []),
        *(f"{name} {run_id}" for name, run_id in _runs(artifact).items()),
        *(f"{name}: {_compact(value)}" for name, value in artifact.settings.items()),
    ]


def _compact_facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_compact(value)}" for name, value in facts.items())


def _compact(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _artifact_as_json(artifact: Artifact, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    created_at = artifact.created_at
    return {
        "artifact_id": artifact.artifact_id,
        "stage": artifact.stage,
        "data_version": artifact.data_version,
        "parents": list(artifact.parents),
        "settings": dict(artifact.settings),
        "code_version": artifact.code_version,
        "dagster_run_id": artifact.dagster_run_id,
        "mlflow_run_id": artifact.mlflow_run_id,
        "created_at": None if created_at is None else created_at.isoformat(),
        "facts": dict(facts.get(artifact.artifact_id, {})),
    }
