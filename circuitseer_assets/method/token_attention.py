"""One text in, what each of its tokens receives from the heads out: the score, spread out again.

The attention is read by the functions that `sample_scores` reads it by, so that the score of a
reading of the profile is the variance of exactly these numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuitseer_assets.method.attention import ensure_supported
from circuitseer_assets.method.readings import find_reading
from circuitseer_assets.method.sample_scores import (
    profile_of,
    read_heads,
    received_by,
    text_to_read,
    token_limit,
)
from circuitseer_assets.records import HeadId, TokenizedText, UnscoredSample
from circuitseer_assets.settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class TokenAttention:
    """What each token of a text receives from the heads that are read.

    Attributes:
        sample_id: the sample's.
        num_read: how many tokens the model read.
        counted: the half-open span of those that the reading looks at.
        received: what each of these receives, mean over the heads and their queries. It sums to 1;
            for `attention_lift` 1 is what a head that attends evenly would give.
        weights: the weight of each of these in the variance; they sum to 1.
        is_score: the sample's score is the variance of these numbers, or for `attention_cv2` their
            number squared times that. It is not where each head is read by itself, or where the
            scorer reads something else.
    """

    sample_id: str
    num_read: int
    counted: tuple[int, int]
    received: tuple[float, ...]
    weights: tuple[float, ...]
    is_score: bool

    @property
    def variance(self) -> float:
        """The weighted variance of what is received."""
        pairs = list(zip(self.weights, self.received, strict=True))
        mean = sum(weight * value for weight, value in pairs)
        return sum(weight * (value - mean) ** 2 for weight, value in pairs)


def read_token_attention(
    model: PreTrainedModel,
    text: TokenizedText,
    *,
    heads: Sequence[HeadId],
    settings: ScoringSettings,
) -> TokenAttention | UnscoredSample:
    """Returns what each token of `text` receives from `heads`, or why that cannot be said.

    Of a scorer other than `attention`, and of a reading of each head by itself, it is what the
    reading `attention_variance` would be taken of.

    Args:
        model: a decoder in evaluation mode.
        text: the prompt, with the response where `settings.span` is the response.
        heads: whose attention is read.
        settings: as the sample was scored by.

    Raises:
        ModelError: the architecture is not supported.
    """
    ensure_supported(model)
    of_profile = settings.scorer == "attention" and find_reading(settings).of_heads is None
    if not of_profile:
        settings = settings.model_copy(update={"reading": "attention_variance"})
    reading = text_to_read(text, settings, token_limit(model, settings))
    if isinstance(reading, UnscoredSample):
        return reading
    queries = _mark(reading.queries, len(reading.input_ids)).to(model.device)
    [seen] = read_heads(model, [reading], heads, received_by(queries, settings))
    attention, num_queries = seen[..., slice(*reading.keys)].unbind(1)
    of_mean = settings.reduce == "mean_then_variance"
    if of_mean:
        attention, num_queries = attention.sum(0, True), num_queries.sum(0, True)
    profile, weights = profile_of(attention, num_queries, settings)
    if not bool(profile.isfinite().all()):
        return UnscoredSample(text.sample_id, "no_attention_mass", "the heads give it no attention")
    return TokenAttention(
        sample_id=text.sample_id,
        num_read=len(reading.input_ids),
        counted=reading.keys,
        received=tuple(profile.mean(0).tolist()),
        weights=tuple(weights.mean(0).tolist()),
        is_score=of_profile and (of_mean or len(heads) == 1),
    )


def _mark(span: tuple[int, int], num_tokens: int) -> Tensor:
    marks = torch.zeros(1, num_tokens)
    marks[:, slice(*span)] = 1.0
    return marks
