"""Sets of heads: planted structure for the random ones, eager attention for those that copy."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.head_sets import choose_heads, draw_other_heads
from circuitseer_assets.method.retrieval_heads import find_retrieval_heads
from circuitseer_assets.records import HeadId
from circuitseer_assets.settings import ScoringSettings

from .conftest import HEADS, LAYERS

REASONING = (HeadId(0, 1), HeadId(2, 0), HeadId(2, 3))


def choose(kind, **kwargs):
    return choose_heads(REASONING, LAYERS, HEADS, ScoringSettings(heads=kind), **kwargs)


def draw(heads, num_layers, num_heads, seed=0) -> list[HeadId]:
    return draw_other_heads(heads, num_layers, num_heads, np.random.default_rng(seed))


def test_head_sets():
    assert choose("reasoning") == REASONING
    assert len(choose("all")) == 12
    assert choose("retrieval", retrieval_heads=[HeadId(1, 1)]) == (HeadId(1, 1),)
    with pytest.raises(SettingsError, match=r"scoring\.heads must name at least one head"):
        choose("retrieval")


def test_random_heads_match_the_layers_and_the_seed():
    drawn = choose("random")
    assert drawn == choose("random")
    assert [head.layer for head in drawn] == [0, 2, 2]
    assert not set(drawn) & set(REASONING)
    others = {
        choose_heads(REASONING, LAYERS, HEADS, ScoringSettings(heads="random", seed=seed))
        for seed in range(20)
    }
    assert len(others) > 1


@given(st.data())
def test_as_many_others_are_drawn_in_the_same_layers_as_far_as_there_are(data) -> None:
    num_layers, num_heads = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    everyone = [HeadId(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    given_ = data.draw(st.lists(st.sampled_from(everyone), unique=True))
    if 2 * len(given_) > len(everyone):
        with pytest.raises(SettingsError, match=r"scoring\.heads must leave as many other heads"):
            draw(given_, num_layers, num_heads)
        return
    drawn = draw(given_, num_layers, num_heads, data.draw(st.integers(0, 99)))
    assert len(set(drawn)) == len(drawn) == len(given_)
    assert not set(drawn) & set(given_)
    assert set(drawn) <= set(everyone)
    of_given, of_drawn = (Counter(head.layer for head in heads) for heads in (given_, drawn))
    for layer in range(num_layers):
        assert of_drawn[layer] >= min(of_given[layer], num_heads - of_given[layer])


def test_what_a_layer_lacks_comes_from_the_nearest_ones() -> None:
    """Five of eight heads in layer 0, as the embedded model has them, and one in layer 3."""
    heads = [*(HeadId(0, head) for head in range(5)), HeadId(3, 0)]
    layers = Counter(head.layer for head in draw(heads, 6, 8))
    assert layers == {0: 3, 1: 2, 3: 1}
    # All of layer 2, and nearly all of layer 3: of two as near the deeper one, while it has any.
    heads = [*(HeadId(2, head) for head in range(4)), *(HeadId(3, head) for head in range(2))]
    assert Counter(head.layer for head in draw(heads, 5, 4)) == {3: 2, 1: 4}


def test_every_other_head_of_a_layer_is_drawn_as_often() -> None:
    heads = [HeadId(1, 0), HeadId(1, 1)]
    drawn = Counter(head for seed in range(3000) for head in draw(heads, 3, 6, seed))
    assert set(drawn) == {HeadId(1, head) for head in range(2, 6)}
    for count in drawn.values():
        assert count == pytest.approx(1500, abs=4 * (3000 * 0.25) ** 0.5)


def test_retrieval_heads_are_those_that_copy(llama):
    """Scores written out from eager attention; the search must give the best of them."""
    found = find_retrieval_heads(llama, num_chosen=4, seed=3, length=12, num_sequences=2)
    generator = torch.Generator().manual_seed(3)
    once = torch.randint(61, (2, 12), generator=generator)
    llama.set_attn_implementation("eager")
    out = llama(input_ids=torch.cat([once, once], 1), output_attentions=True)
    scores = {}
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        matrix = out.attentions[layer][:, head]
        scores[HeadId(layer, head)] = np.mean(
            [matrix[b, 12 + i, i + 1].item() for b in range(2) for i in range(12)]
        )
    assert found == tuple(sorted(sorted(scores, key=lambda head: -scores[head])[:4]))
