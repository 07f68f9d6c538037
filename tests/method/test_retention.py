"""What stays when a store is pruned, on random graphs against the definition."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.retention import keep_artifacts
from circuitseer_assets.records import Artifact


@st.composite
def stores(draw: st.DrawFn) -> list[Artifact]:
    """Artifacts, the oldest first, each made from any of the older ones."""
    made: list[Artifact] = []
    for i in range(draw(st.integers(0, 14))):
        stage = draw(st.sampled_from(["corpus", "subset", "checkpoint"]))
        older = [artifact.artifact_id for artifact in made]
        parents = draw(st.lists(st.sampled_from(older), unique=True, max_size=3)) if older else []
        made.append(Artifact(f"{stage}-{i}", stage, "v", tuple(parents), {}, "1"))
    return made


NUM_NEWEST = st.integers(0, 5)


def is_needed(artifact: Artifact, store: list[Artifact], wanted: set[str]) -> bool:
    """Whether an artifact is wanted, or something made from it is needed: the definition."""
    if artifact.artifact_id in wanted:
        return True
    children = [child for child in store if artifact.artifact_id in child.parents]
    return any(is_needed(child, store, wanted) for child in children)


@given(stores(), NUM_NEWEST, st.data())
def test_what_stays_is_what_something_wanted_stands_on_and_nothing_else(
    store: list[Artifact], num_newest: int, data: st.DataObject
) -> None:
    ids = [artifact.artifact_id for artifact in store]
    in_use = set(data.draw(st.lists(st.sampled_from(ids)))) if ids else set()
    wanted = set(in_use)
    for stage in {artifact.stage for artifact in store}:
        of_stage = [a.artifact_id for a in store if a.stage == stage]
        wanted |= set(list(reversed(of_stage))[:num_newest])
    expected = {a.artifact_id for a in store if is_needed(a, store, wanted)}
    assert keep_artifacts(store, num_newest=num_newest, in_use=in_use) == expected


@given(stores(), NUM_NEWEST)
def test_every_ancestor_of_what_stays_stays(store: list[Artifact], num_newest: int) -> None:
    kept = keep_artifacts(store, num_newest=num_newest)
    for artifact in store:
        if artifact.artifact_id in kept:
            assert set(artifact.parents) <= kept


@given(stores(), NUM_NEWEST)
def test_more_newest_keep_a_superset(store: list[Artifact], num_newest: int) -> None:
    fewer = keep_artifacts(store, num_newest=num_newest)
    assert fewer <= keep_artifacts(store, num_newest=num_newest + 1)


@given(stores(), NUM_NEWEST)
def test_what_stays_stays_again(store: list[Artifact], num_newest: int) -> None:
    kept = keep_artifacts(store, num_newest=num_newest)
    left = [artifact for artifact in store if artifact.artifact_id in kept]
    assert keep_artifacts(left, num_newest=num_newest) == kept


def test_a_parent_or_a_thing_in_use_that_is_not_recorded_is_passed_over() -> None:
    lone = Artifact("subset-1", "subset", "v", ("gone-1",), {}, "1")
    assert keep_artifacts([lone], num_newest=0, in_use=["subset-1", "gone-2"]) == {"subset-1"}
    circular = [replace(lone, parents=("subset-1",))]
    assert keep_artifacts(circular, num_newest=1) == {"subset-1"}


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--keep must be at least 0 .*, got -1"):
        keep_artifacts([], num_newest=-1)
