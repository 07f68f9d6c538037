"""The measurement of readings reads what the product reads."""

from itertools import chain

import numpy as np
import pytest

from bench.attention_readings import OF_HEADS, OF_PROFILE, read_problems_by
from bench.models import load_model
from bench.score_validity import list_sets, unique_sets
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import HeadId
from circuitseer_assets.settings import ScoringSettings

SETS = {
    "delta": [HeadId(0, 1), HeadId(0, 5), HeadId(3, 2)],
    "specific": [HeadId(3, 2), HeadId(0, 1), HeadId(0, 5)],
    "prose": [HeadId(5, 0)],
}
SETTINGS = {
    **{name: {"reading": name} for name in OF_PROFILE if name != "content_cv2"},
    "content_cv2": {"reading": "attention_cv2", "tokens": "content"},
    **{name: {"reading": reading} for name, (reading, _) in OF_HEADS.items()},
    "content_focus": {"reading": "attention_focus", "tokens": "content"},
}


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


@pytest.mark.parametrize("name", SETTINGS)
def test_readings_by_many_sets_are_those_of_the_product(model, name) -> None:
    samples = [
        sample_from_texts(p.prompt, p.response, source="s", position=i, original={})
        for i, p in enumerate(generate_problems(3, seed=4, split="train"))
    ]
    names, membership = list_sets({"delta": SETS["delta"]}, model)
    found = read_problems_by(model, samples, membership[:1])[name]
    texts = [model.tokenize(s.sample_id, s.messages) for s in samples]
    scores = score_samples(
        model.model,
        texts,
        heads=SETS["delta"],
        settings=ScoringSettings(**SETTINGS[name]),
        max_batch_tokens=4096,
    )
    by_id = {score.sample_id: score.score for score in scores}
    assert found.shape == (1, 3)
    assert found[0] == pytest.approx([by_id[s.sample_id] for s in samples], rel=1e-5)
    assert names[0] == "delta"


def test_equal_sets_are_measured_once_and_each_half_has_random_sets_of_its_own(model) -> None:
    assert list(unique_sets(SETS)) == ["delta", "prose"]
    names, membership = list_sets(unique_sets(SETS), model)
    assert membership.sum(1) == pytest.approx(np.ones(len(names)))
    for name, heads in unique_sets(SETS).items():
        own = membership[names.index(name)] > 0
        assert own.sum() == len(heads)
        halves = [
            [tuple(membership[i]) for i, other in enumerate(names) if other.startswith(prefix)]
            for prefix in (f"{name}:look", f"{name}:confirm")
        ]
        assert [len(half) for half in halves] == [40, 40]
        assert halves[0] != halves[1]
        for row in chain(*halves):
            assert not (np.array(row) > 0)[own].any()
            assert (np.array(row) > 0).sum() == len(heads)
