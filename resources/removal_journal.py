"""What a removal has begun: written before anything goes, so that a killed one can be finished."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

JOURNAL = "prune.json"
"""The file in a home that says what has begun to be removed."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes: artifacts as (stage, id), MLflow runs and models by id."""

    artifacts: tuple[tuple[str, str], ...] = ()
    run_ids: tuple[str, ...] = ()
    model_ids: tuple[str, ...] = ()

    @property
    def artifact_ids(self) -> tuple[str, ...]:
        """The ids of the artifacts that go."""
        return tuple(artifact_id for _, artifact_id in self.artifacts)

    def without(self, ids: Collection[str | None]) -> "Removal":
        """Returns the removal of all but these artifacts, runs and models."""
        return Removal(
            tuple(one for one in self.artifacts if one[1] not in ids),
            tuple(one for one in self.run_ids if one not in ids),
            tuple(one for one in self.model_ids if one not in ids),
        )

    def __or__(self, other: "Removal") -> "Removal":
        return Removal(
            tuple(dict.fromkeys(self.artifacts + other.artifacts)),
            tuple(dict.fromkeys(self.run_ids + other.run_ids)),
            tuple(dict.fromkeys(self.model_ids + other.model_ids)),
        )


def read_journal(path: Path) -> Removal:
    """Returns the removal that was begun and not finished; an empty one where there is none."""
    if not path.exists():
        return Removal()
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Removal(
        tuple((stage, artifact_id) for stage, artifact_id in stored["artifacts"]),
        tuple(stored["run_ids"]),
        tuple(stored["model_ids"]),
    )


def write_journal(path: Path, removal: Removal) -> None:
    """Returns when the file says what is about to go, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(asdict(removal), indent=1), encoding="utf-8")
    part.replace(path)
