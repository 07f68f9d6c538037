"""A subset and what it was made from: the artifacts by stage, and their tables as records."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.probe_set import ProbeSet
from circuitseer_assets.method.weights import strata_from_table, weigh_samples
from circuitseer_assets.records import (
    Artifact,
    HeadId,
    HeadImportance,
    HeadRanking,
    JointAblation,
)
from circuitseer_assets.settings import ScoringSettings, SelectionSettings
from resources.home import Home
from resources.pool_order import PoolOrder


@dataclass(frozen=True)
class SubsetChain:
    """One subset, and the artifacts that it was drawn from."""

    home: Home
    subset: Artifact
    scores: Artifact
    ranking: Artifact
    pool: Artifact
    probe_set: Artifact
    corpus: Artifact

    @classmethod
    def of(cls, home: Home, subset_id: str) -> "SubsetChain":
        """Returns the chain of a subset, after making sure that its files are whole.

        Raises:
            ArtifactError: there is no such subset, or something it was made from is gone.
        """
        warehouse = home.warehouse
        subset = warehouse.find_artifact(subset_id)
        if subset is None or subset.stage != "subset":
            latest = warehouse.latest_artifacts("subset", 5)
            known = ", ".join(artifact.artifact_id for artifact in latest) or "none"
            raise ArtifactError(
                f"SUBSET must be a subset's id, got {subset_id!r}; the latest are: {known}"
            )
        scores = _parent(home, subset, "sample_scores")
        pool = _parent(home, scores, "pool")
        made_from = {
            "ranking": _parent(home, scores, "head_ranking"),
            "probe_set": _parent(home, pool, "probe_set"),
            "corpus": _parent(home, pool, "corpus"),
        }
        for artifact in (subset, scores, pool, *made_from.values()):
            home.artifacts.verify(artifact.stage, artifact.artifact_id)
        return cls(home=home, subset=subset, scores=scores, pool=pool, **made_from)

    def folder(self, artifact: Artifact) -> Path:
        """Returns the folder an artifact's files lie in."""
        return self.home.artifacts.folder(artifact.stage, artifact.artifact_id)

    @property
    def samples(self) -> Path:
        """Where the corpus's samples lie."""
        return self.folder(self.corpus) / "samples"

    @property
    def scorer_id(self) -> str:
        """The identity of model, heads and formula."""
        return str(self.scores.settings["scorer_id"])

    @cached_property
    def scoring(self) -> ScoringSettings:
        """The settings that the pool was scored by."""
        return ScoringSettings.model_validate_json(json.dumps(self.scores.settings["scoring"]))

    @cached_property
    def selection(self) -> SelectionSettings:
        """The settings of the draw."""
        return SelectionSettings.model_validate_json(json.dumps(self.subset.settings["selection"]))

    @property
    def scores_file(self) -> Path:
        """Where the pool's scores lie."""
        return self.folder(self.scores) / "scores.parquet"

    @cached_property
    def pool_scores(self) -> pa.Table:
        """The scored samples of the pool by id, with their `weight`."""
        stored = pq.read_table(self.scores_file)
        strata = [
            strata_from_table(pq.read_table(self.folder(frozen) / "length_strata.parquet"))
            for frozen in _parents(self.home, self.subset)
            if frozen.stage == "length_strata"
        ]
        return weigh_samples(stored, self.selection, strata[0] if strata else ())

    @cached_property
    def members(self) -> frozenset[str]:
        """The ids of the drawn samples."""
        file = self.folder(self.subset) / "subset_members.parquet"
        return frozenset(pq.read_table(file, columns=["sample_id"])["sample_id"].to_pylist())

    @cached_property
    def order(self) -> PoolOrder:
        """The pool in the order of the scores, and in that of the draw."""
        return PoolOrder(self.pool_scores, self.selection, len(self.members))

    @cached_property
    def probes(self) -> ProbeSet:
        """The probe set."""
        stored = json.loads((self.folder(self.probe_set) / "probe_set.json").read_text())
        return ProbeSet(**{name: tuple(values) for name, values in stored.items()})

    @cached_property
    def contaminated(self) -> list[dict[str, str]]:
        """What decontamination removed: `sample_id`, `task`, `doc_id` and `rule`."""
        table = pq.read_table(self.folder(self.pool) / "contaminated_samples.parquet")
        rows: list[dict[str, str]] = table.to_pylist()
        return rows

    @cached_property
    def head_ranking(self) -> HeadRanking:
        """The ranking whose heads are read."""
        return load_head_ranking(self.folder(self.ranking))

    def summary(self, artifact: Artifact) -> dict[str, Any]:
        """Returns what making an artifact said of it."""
        loaded: dict[str, Any] = json.loads((self.folder(artifact) / "summary.json").read_text())
        return loaded


def load_head_ranking(folder: Path) -> HeadRanking:
    """Returns a stored ranking."""
    stored = json.loads((folder / "head_ranking.json").read_text())
    joint = stored.pop("joint")
    importance = tuple(
        HeadImportance(**{**row, "head": HeadId(**row["head"])}) for row in stored.pop("importance")
    )
    return HeadRanking(
        importance=importance,
        joint=JointAblation(**{**joint, "delta_random_nats": tuple(joint["delta_random_nats"])})
        if joint
        else None,
        **stored,
    )


def _parents(home: Home, artifact: Artifact) -> list[Artifact]:
    found = (home.warehouse.find_artifact(parent) for parent in artifact.parents)
    return [parent for parent in found if parent is not None]


def _parent(home: Home, artifact: Artifact, stage: str) -> Artifact:
    for parent in _parents(home, artifact):
        if parent.stage == stage:
            return parent
    raise ArtifactError(
        f"{artifact.artifact_id} must have a parent of stage {stage}, got "
        f"{', '.join(artifact.parents) or 'none'}; run make run to make it anew"
    )
