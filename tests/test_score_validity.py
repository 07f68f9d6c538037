"""The measurement of readings reads what the product reads."""

from collections import Counter
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
from scipy import stats

from bench.attention_readings import OF_HEADS, OF_PROFILE, read_problems_by
from bench.models import load_model
from bench.random_head_sets import (
    count_random_sets,
    draw_distinct_sets,
    largest_z,
    list_sets,
    unique_sets,
)
from bench.reading_correlations import compare, confirm, format_tables, partial_spearman
from bench.score_validity import (
    NUM_FIRST_TOKENS,
    cut,
    effects_on_later_tokens,
    overlap_of_disjoint_probes,
)
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.head_effects import Progress, make_laboratory
from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import HeadId, Message
from circuitseer_assets.settings import HeadRankingSettings, ScoringSettings

SETS = {
    "delta": [HeadId(0, 1), HeadId(0, 5), HeadId(3, 2)],
    "specific": [HeadId(3, 2), HeadId(0, 1), HeadId(0, 5)],
    "prose": [HeadId(4, 7), HeadId(5, 0), HeadId(5, 3)],
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
        assert {len(set(half)) for half in halves} <= {len(halves[0]), len(halves[0]) - 1}
        assert not set(halves[0]) & set(halves[1])
        num_by_layer = Counter(head.layer for head in heads)
        for row in chain(*halves):
            assert row != tuple(membership[names.index(name)])
            is_in = (np.array(row) > 0).reshape(6, 8)
            assert {i: n for i, n in enumerate(is_in.sum(1)) if n} == num_by_layer


def test_random_sets_are_all_there_are_where_there_are_few() -> None:
    """By enumeration: as many heads of each layer, and not the chosen set itself."""
    heads = [HeadId(0, i) for i in range(5)] + [HeadId(1, 0)]
    with pytest.raises(ValueError, match=r"leave 20 other sets .* they leave 19"):
        draw_distinct_sets(heads[:3], 6)
    drawn = {frozenset(one) for one in draw_distinct_sets(heads[:2] + heads[5:], 7)}
    every = {
        frozenset([*(HeadId(0, i) for i in of_first), HeadId(1, j)])
        for of_first in combinations(range(7), 2)
        for j in range(7)
    }
    assert drawn == every - {frozenset(heads[:2] + heads[5:])}


def test_what_heads_do_on_parts_of_a_response_is_measured_and_not_remembered(model) -> None:
    """Later tokens by the definition: the loss of what is left when the response starts later."""
    texts = [
        model.tokenize(str(i), [Message("user", p.prompt)], p.response)
        for i, p in enumerate(generate_problems(3, seed=5, split="train"))
    ]
    later = [
        replace(text, sample_id=f"{i}:l", response_start=text.response_start + NUM_FIRST_TOKENS)
        for i, text in enumerate(texts)
    ]
    together = make_laboratory(model.model, texts, HeadRankingSettings(), max_batch_tokens=4096)
    alone = make_laboratory(model.model, texts, HeadRankingSettings(), max_batch_tokens=4096)
    which = np.ones(48, dtype=bool)

    def effects(laboratory, of):
        return laboratory.measure(of, which, Progress(lambda *_: None, 1)).effects

    on_all, on_first = effects(together, texts), effects(together, list(map(cut, texts)))
    assert on_first == pytest.approx(effects(alone, list(map(cut, texts))), abs=1e-6)
    assert abs(on_all - on_first).max() > 0.01
    num_tokens = [len(text.input_ids) - text.response_start for text in texts]
    assert effects_on_later_tokens(on_all, on_first, num_tokens) == pytest.approx(
        effects(alone, later).mean(axis=1), abs=1e-5
    )


def test_probes_that_say_the_same_agree_on_all_heads() -> None:
    importance = np.arange(20.0)
    same = importance[:, None] + np.zeros(12)
    assert overlap_of_disjoint_probes(same, k=5) == {6: 1.0, 3: 1.0}
    opposite = np.where(np.arange(12) < 6, importance[:, None], -importance[:, None])
    assert overlap_of_disjoint_probes(opposite, k=5) == {6: 0.0, 3: 1.0}


def test_the_partial_correlation_is_that_of_the_ranks_residuals() -> None:
    """By the textbook's recursion, where what is fixed enters linearly."""
    generator = np.random.default_rng(2)
    fixed = generator.normal(size=400)
    values, wanted = generator.normal(size=(2, 400)) + fixed
    assert partial_spearman(values, wanted, None) == pytest.approx(
        stats.spearmanr(values, wanted).statistic
    )
    ab, ac, bc = (
        stats.spearmanr(*pair).statistic
        for pair in ((values, wanted), (values, fixed), (wanted, fixed))
    )
    by_hand = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    assert partial_spearman(values, wanted, fixed) == pytest.approx(by_hand, abs=0.01)
    assert ab > 0.4  # which length alone makes of nothing
    assert partial_spearman(np.ones(400), wanted, fixed) == 0.0


def planted_rows(effect: float, num_sets: int = 20) -> list[dict]:
    """What comes of 200 problems where the chosen set's score holds this much of the steps."""
    generator = np.random.default_rng(3)
    steps, length = generator.normal(size=(2, 200))
    names = [
        "delta",
        *(f"delta:{part}{i}" for part in ("look", "confirm") for i in range(num_sets)),
    ]
    scores = generator.normal(size=(len(names), 200))
    scores[0] += effect * steps
    rows = list(compare("r", scores, names, {"length": length, "steps": steps}, half=100))
    confirm(rows)
    return rows


def test_a_planted_reading_is_confirmed_and_counted_against_its_own_half() -> None:
    of_length, of_steps = planted_rows(effect=1.0)
    assert of_steps["is_confirmed"]
    assert of_steps["num_random_look"] == of_steps["num_random_confirm"] == 20
    assert not of_length["is_candidate"]  # length is no target
    tables = format_tables({"rows": [of_length, of_steps]})
    assert f"**{of_steps['look']:+.2f}, {of_steps['confirm']:+.2f}" in tables
    assert count_random_sets(["delta", "delta:look0", "delta:confirm0", "delta:confirm1"]) == {
        "delta": {"look": 1, "confirm": 2}
    }


def test_what_only_looks_like_something_is_hardly_ever_confirmed() -> None:
    """In one in twenty measurements of noise at most, though heads lie alike in both halves."""
    generator = np.random.default_rng(4)
    num_wrong = 0
    for _ in range(200):
        z_look, own = generator.normal(size=(2, 120))
        z_confirm = 0.9 * z_look + np.sqrt(1 - 0.9**2) * own
        row = {"reading": "r", "heads": "delta", "target": "steps", "num_random_confirm": 100}
        rows = [
            row | {"z_look": look, "z_confirm": again}
            for look, again in zip(z_look, z_confirm, strict=True)
        ]
        confirm(rows)
        num_wrong += any(row["is_confirmed"] for row in rows)
    assert num_wrong <= 0.05 * 200 + 2 * np.sqrt(200 * 0.05 * 0.95)
    opposite = [dict(rows[0], z_look=5.0, z_confirm=-9.0), dict(rows[0], z_look=5.0, z_confirm=9.0)]
    confirm(opposite)
    assert [row["is_confirmed"] for row in opposite] == [False, True]


def test_the_largest_z_is_that_of_a_layers_highest_heads() -> None:
    generator = np.random.default_rng(5)
    heads = [*(HeadId(0, head) for head in range(5)), HeadId(1, 7)]
    found = []
    for _ in range(300):
        layers = -np.sort(-generator.normal(size=(2, 8)))
        chosen = layers[0, :5].sum() + layers[1, 0]
        drawn = [
            generator.choice(layers[0], 5, replace=False).sum() + generator.choice(layers[1])
            for _ in range(100)
        ]
        found.append((chosen - np.mean(drawn)) / np.std(drawn, ddof=1))
    assert largest_z(heads, num_heads=8) == pytest.approx(np.mean(found), rel=0.08)
    assert largest_z([HeadId(0, head) for head in range(8)], num_heads=8) == 0.0
