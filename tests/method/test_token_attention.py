"""What each token receives: the score is its variance, and eager attention gives the same."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.method.token_attention import TokenAttention, read_token_attention
from circuitseer_assets.records import HeadId, SampleScore, TokenizedText, UnscoredSample
from circuitseer_assets.settings import ScoringSettings

from .conftest import make_text

HEADS = (HeadId(0, 2), HeadId(1, 0), HeadId(1, 3), HeadId(2, 1))
OPTIONS = {
    "reading": ["attention_variance", "attention_cv2", "attention_lift"],
    "queries": ["all", "last"],
    "tokens": ["all", "content"],
    "span": ["prompt", "response"],
}
EVERY_OPTION = [
    dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())
]


def score_of(model, text: TokenizedText, settings: ScoringSettings) -> SampleScore:
    texts = [text, make_text("another", 33, 12)]  # beside another, as a pool is scored
    scores = score_samples(model, texts, heads=HEADS, settings=settings, max_batch_tokens=4096)
    [score] = [one for one in scores if one.sample_id == text.sample_id]
    assert isinstance(score, SampleScore)
    return score


def weighted_variance(values: Sequence[float], weights: Sequence[float]) -> float:
    a, w = np.array(values), np.array(weights)
    return float(np.average((a - np.average(a, weights=w)) ** 2, weights=w))


@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda options: "-".join(options.values()))
def test_the_variance_of_what_is_shown_is_the_score(llama, options) -> None:
    settings = ScoringSettings(**options, min_tokens=2)
    text = make_text("text", 25, 14)
    shown = read_token_attention(llama, text, heads=HEADS, settings=settings)
    assert isinstance(shown, TokenAttention)
    assert shown.is_score
    score = score_of(llama, text, settings)
    variance = weighted_variance(shown.received, shown.weights)
    factor = score.num_tokens**2 if options["reading"] == "attention_cv2" else 1
    assert factor * variance == pytest.approx(score.score, rel=1e-5)
    assert shown.variance == pytest.approx(variance, rel=1e-12)


def test_it_is_the_mean_of_eager_attention(any_model) -> None:
    text = make_text("text", 23)
    shown = read_token_attention(any_model, text, heads=HEADS, settings=ScoringSettings())
    any_model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = any_model(input_ids=torch.tensor([text.input_ids]), output_attentions=True)
    expected = torch.stack([out.attentions[h.layer][0, h.head].mean(0) for h in HEADS]).mean(0)
    assert isinstance(shown, TokenAttention)
    assert np.allclose(shown.received, expected.numpy(), atol=1e-5)
    assert sum(shown.received) == pytest.approx(1)
    assert shown.counted == (0, 23)


def test_of_a_part_of_the_text_only_that_part_is_shown(llama) -> None:
    text = make_text("text", 25)
    settings = ScoringSettings(tokens="content")
    shown = read_token_attention(llama, text, heads=HEADS, settings=settings)
    assert isinstance(shown, TokenAttention)
    assert shown.counted == text.content
    assert len(shown.received) == text.content[1] - text.content[0]
    assert sum(shown.received) == pytest.approx(1)


@pytest.mark.parametrize(
    "options",
    [
        {"reading": "attention_focus"},
        {"reading": "number_mass"},
        {"reduce": "variance_then_mean"},
        {"scorer": "max_loss"},
        {"scorer": "ifd", "reading": "attention_lift"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_where_the_score_is_another_it_says_so(llama, options) -> None:
    text = make_text("text", 25)
    settings = ScoringSettings(**options)
    shown = read_token_attention(llama, text, heads=HEADS, settings=settings)
    plain = read_token_attention(llama, text, heads=HEADS, settings=ScoringSettings())
    assert isinstance(shown, TokenAttention)
    assert isinstance(plain, TokenAttention)
    assert not shown.is_score
    assert np.allclose(shown.received, plain.received)


def test_what_cannot_be_scored_cannot_be_shown(llama) -> None:
    shown = read_token_attention(
        llama, make_text("short", 5), heads=HEADS, settings=ScoringSettings()
    )
    assert shown == UnscoredSample(
        "short", "too_few_tokens", "5 usable tokens, at least 8 are needed"
    )
