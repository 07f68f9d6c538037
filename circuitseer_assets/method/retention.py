"""Which artifacts stay when a store is pruned: the newest, what is in use, and all they stand on.

An artifact stands on its parents, and on theirs. Nothing that stays may miss one of them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.records import Artifact


def keep_artifacts(
    artifacts: Sequence[Artifact], *, num_newest: int, in_use: Collection[str] = ()
) -> frozenset[str]:
    """Returns the ids of the artifacts that stay.

    Args:
        artifacts: all there are, the oldest first; of two made at once the later one is newer.
        num_newest: how many of each stage stay because they are the newest.
        in_use: ids that stay whatever their age; one that is not among `artifacts` is passed over.

    Raises:
        SettingsError: `num_newest` is below 0.
    """
    if num_newest < 0:
        raise SettingsError(
            f"--keep must be at least 0 (only what is in use), got {num_newest}; say how many of "
            f"the newest artifacts of each stage are to stay"
        )
    by_stage: dict[str, list[str]] = defaultdict(list)
    for artifact in artifacts:
        by_stage[artifact.stage].append(artifact.artifact_id)
    newest = [i for ids in by_stage.values() for i in ids[len(ids) - min(num_newest, len(ids)) :]]
    parents = {artifact.artifact_id: artifact.parents for artifact in artifacts}
    return _with_ancestors([*newest, *in_use], parents)


def _with_ancestors(ids: Iterable[str], parents: Mapping[str, Sequence[str]]) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(ids)
    while waiting:
        artifact_id = waiting.pop()
        if artifact_id in parents and artifact_id not in found:
            found.add(artifact_id)
            waiting += parents[artifact_id]
    return frozenset(found)
