import hashlib
import random

import pytest

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.probe_set import (
    ProbeCandidate,
    ProbeSet,
    candidate_of,
    draw_probe_set,
)
from circuitseer_assets.settings import ProbeSetSettings

FIVE = ProbeSetSettings(num_ranking=3, num_confirmation=2, seed=11)


def make_candidates(num_prompts: int, *, each: int = 1) -> list[ProbeCandidate]:
    return [
        ProbeCandidate(f"s{prompt}.{i}", f"p{prompt}", 100 + prompt)
        for prompt in range(num_prompts)
        for i in range(each)
    ]


def expected_order(candidates: list[ProbeCandidate], seed: int) -> list[ProbeCandidate]:
    """Every prompt's first sample by md5("probe_set:seed:sample_id"), in that order."""

    def number(candidate: ProbeCandidate) -> int:
        digest = hashlib.md5(f"probe_set:{seed}:{candidate.sample_id}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    seen: dict[str, ProbeCandidate] = {}
    for candidate in sorted(candidates, key=number):
        seen.setdefault(candidate.prompt_id, candidate)
    return list(seen.values())


@pytest.mark.parametrize(("num_prompts", "each"), [(6, 1), (50, 1), (400, 3)])
@pytest.mark.parametrize("seed", [0, 11])
def test_the_draw_is_the_first_of_each_prompt_by_permanent_number(num_prompts, each, seed):
    candidates = make_candidates(num_prompts, each=each)
    settings = FIVE.model_copy(update={"seed": seed})
    drawn = draw_probe_set(candidates, settings)
    expected = expected_order(candidates, seed)[:5]
    assert drawn.ranking == tuple(c.sample_id for c in expected[:3])
    assert drawn.confirmation == tuple(c.sample_id for c in expected[3:])
    assert drawn.prompt_ids == tuple(sorted(c.prompt_id for c in expected))


def test_the_order_of_the_corpus_makes_no_difference():
    candidates = make_candidates(200, each=2)
    shuffled = random.Random(0).sample(candidates, len(candidates))
    assert draw_probe_set(candidates, FIVE) == draw_probe_set(shuffled, FIVE)


def test_another_seed_is_another_draw():
    candidates = make_candidates(200)
    other = FIVE.model_copy(update={"seed": 12})
    assert draw_probe_set(candidates, FIVE) != draw_probe_set(candidates, other)


def test_every_row_is_drawn_about_equally_often():
    candidates = make_candidates(20)
    counts = dict.fromkeys((c.sample_id for c in candidates), 0)
    for seed in range(1000):
        drawn = draw_probe_set(candidates, FIVE.model_copy(update={"seed": seed}))
        for sample_id in drawn.ranking + drawn.confirmation:
            counts[sample_id] += 1
    # Binomial(1000, 5/20): mean 250, standard deviation 13.7.
    assert all(abs(count - 250) < 5 * 13.7 for count in counts.values())


def test_long_rows_are_not_eligible():
    candidates = make_candidates(50)
    drawn = draw_probe_set(candidates, FIVE.model_copy(update={"max_characters": 105}))
    short = {c.sample_id for c in candidates if c.num_characters <= 105}
    assert len(short) == 6
    assert set(drawn.ranking + drawn.confirmation) <= short


def test_control_texts_are_disjoint_from_probes_and_pool():
    texts = [
        sample_from_texts(f"Q{i}", "A", source="s", position=i, original={}) for i in range(30)
    ]
    first = draw_probe_set(map(candidate_of, texts), FIVE)
    control = [text for text in texts if text.sample_id == first.ranking[0]]
    drawn = draw_probe_set(map(candidate_of, texts), FIVE, control=control)
    assert drawn.control == (first.ranking[0],)
    assert first.ranking[0] not in drawn.ranking + drawn.confirmation
    pool = [text for text in texts if text.prompt_id not in drawn.prompt_ids]
    assert len(pool) == 30 - 5 - 1
    assert not {t.sample_id for t in pool} & {*drawn.ranking, *drawn.confirmation, *drawn.control}


# stickiness


def test_new_rows_change_nothing_once_drawn():
    old = make_candidates(50)
    new = [ProbeCandidate(f"n{i}", f"np{i}", 10) for i in range(5000)]
    before = draw_probe_set(old, FIVE)
    assert draw_probe_set(old + new, FIVE) != before
    assert draw_probe_set(old + new, FIVE, keep=before) == before


def test_only_vanished_members_are_replaced_each_in_its_place():
    candidates = make_candidates(100)
    before = draw_probe_set(candidates, FIVE)
    gone = {before.ranking[1], before.confirmation[0]}
    left = [c for c in candidates if c.sample_id not in gone]
    after = draw_probe_set(left, FIVE, keep=before)
    fresh = [c.sample_id for c in expected_order(candidates, 11)[5:7]]
    assert after.ranking == (before.ranking[0], fresh[0], before.ranking[2])
    assert after.confirmation == (fresh[1], before.confirmation[1])


def test_a_replacement_never_shares_a_kept_members_prompt():
    candidates = make_candidates(7, each=6)
    for seed in range(40):
        settings = FIVE.model_copy(update={"seed": seed})
        before = draw_probe_set(candidates, settings)
        left = [c for c in candidates if c.sample_id not in before.ranking[:2]]
        after = draw_probe_set(left, settings, keep=before)
        members = after.ranking + after.confirmation
        prompts = {c.prompt_id for c in candidates if c.sample_id in members}
        assert len(set(members)) == len(prompts) == len(after.prompt_ids) == 5
        assert after.ranking[2:] + after.confirmation == before.ranking[2:] + before.confirmation


def test_when_all_members_vanish_the_set_is_drawn_anew():
    candidates = make_candidates(40)
    before = draw_probe_set(candidates, FIVE)
    members = before.ranking + before.confirmation
    left = [c for c in candidates if c.sample_id not in members]
    assert draw_probe_set(left, FIVE, keep=before) == draw_probe_set(left, FIVE)


def test_a_larger_set_keeps_the_smaller_ones_members():
    candidates = make_candidates(60)
    before = draw_probe_set(candidates, FIVE)
    more = FIVE.model_copy(update={"num_ranking": 6})
    after = draw_probe_set(candidates, more, keep=before)
    assert after.ranking[:3] == before.ranking
    assert after.confirmation == before.confirmation
    assert len(set(after.ranking + after.confirmation)) == 8


# too few rows


def error_of(candidates: list[ProbeCandidate], **changes: object) -> str:
    with pytest.raises(CorpusError) as caught:
        draw_probe_set(candidates, FIVE.model_copy(update=changes))
    return str(caught.value)


RULE = (
    "probe_set.num_ranking + probe_set.num_confirmation must be fewer than the corpus's clean and "
    "different prompts, got 3 + 2 with "
)


def test_too_few_prompts_are_an_error_with_the_numbers():
    assert error_of(make_candidates(4, each=9)) == (
        f"{RULE}4 eligible prompts; ask for fewer probes or give a larger corpus"
    )
    assert error_of([]) == f"{RULE}0 eligible prompts; ask for fewer probes or give a larger corpus"


def test_too_few_short_prompts_name_the_limit():
    assert error_of(make_candidates(50), max_characters=102) == (
        f"{RULE}3 eligible prompts of at most probe_set.max_characters = 102; ask for fewer "
        "probes, raise max_characters or give a larger corpus"
    )


def test_a_pool_without_a_row_is_an_error():
    assert error_of(make_candidates(5, each=9)) == (
        f"{RULE}5 prompts, which leaves none to select from; "
        "ask for fewer probes or give a larger corpus"
    )


def test_one_prompt_more_than_the_probes_is_enough():
    drawn = draw_probe_set(make_candidates(6), FIVE)
    assert isinstance(drawn, ProbeSet)
    assert len(drawn.prompt_ids) == 5


def test_rows_too_long_for_a_probe_still_make_a_pool():
    candidates = make_candidates(6)
    drawn = draw_probe_set(candidates, FIVE.model_copy(update={"max_characters": 104}))
    assert "s5.0" not in drawn.ranking + drawn.confirmation
