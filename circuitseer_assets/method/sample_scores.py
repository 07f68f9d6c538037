"""Scores samples by the attention of the reasoning heads: head_ranking in, sample_scores out.

While the model reads a prompt, the attention that each token receives from the reasoning heads is
averaged over heads and queries; the score is how unevenly it is spread over the tokens. The forward
ends at the deepest of these heads, and theirs is the only attention that is ever looked at.

Reference: CircuitSeer, arXiv 2510.18470.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.attention import (
    Attend,
    AttentionCall,
    StopForward,
    decoder_of,
    ensure_supported,
    intercept_attention,
    num_queries_seeing,
    received_attention,
)
from circuitseer_assets.method.batches import WINDOW_SAMPLES, batch_by_length, padded_ids
from circuitseer_assets.method.head_readings import mark_texts
from circuitseer_assets.method.reader import Reader
from circuitseer_assets.method.readings import find_reading
from circuitseer_assets.records import (
    HeadId,
    Sample,
    SampleScore,
    TokenizedText,
    UnscoredSample,
)
from circuitseer_assets.settings import ScoringSettings


def score_by_attention(
    reader: Reader, samples: Iterable[Sample], settings: ScoringSettings
) -> Iterator[SampleScore | UnscoredSample]:
    """Returns how unevenly the attention of the reader's heads is spread, as `score_samples`."""
    with_response = settings.span == "response"
    return score_samples(
        reader.model,
        (reader.read(sample, with_response=with_response) for sample in samples),
        heads=reader.heads,
        settings=settings,
        max_batch_tokens=reader.max_batch_tokens,
    )


def score_samples(
    model: PreTrainedModel,
    texts: Iterable[TokenizedText],
    *,
    heads: Sequence[HeadId],
    settings: ScoringSettings,
    max_batch_tokens: int,
) -> Iterator[SampleScore | UnscoredSample]:
    """Returns the score of every text, or the reason why it has none, in no particular order.

    `readings.py` lists the readings. Of the profile a over the T usable tokens (summing to 1) are:

    - `attention_variance`: sum((a - 1/T)^2) / T.
    - `attention_cv2`: T^2 times that.
    - `attention_lift`: each query's attention times the number of tokens it sees (1 = uniform),
      self-attention left out, averaged over the queries (and heads) that see token j; the variance
      of that over j, each j weighted by the number of queries that see it.

    All others are of each head by itself, averaged over the heads, so that `reduce` does not
    matter: see `head_readings`.

    With `tokens: content` both queries and keys lie inside the problem's own text, with
    `span: response` inside the response, which the model then reads as well; the average is
    renormalised once (for `attention_lift` to a weighted mean of 1). `queries: last` takes the last
    query of the span. `reduce: variance_then_mean` reads each head by itself and averages the
    readings.

    Texts of like length share a batch, padded on the right without a mask: under causal attention
    no token sees the padding, so a score does not depend on its batch beyond rounding.

    Args:
        model: a decoder in evaluation mode.
        texts: prompts, with or without a response; read lazily, some hundreds ahead.
        heads: whose attention is read.
        settings: the reading and its options.
        max_batch_tokens: how many tokens run at once, padding included; at least one text does.

    Raises:
        ModelError: the architecture is not supported.
        SettingsError: `heads` is empty or not the model's.
    """
    shape = ensure_supported(model)
    foreign = [h for h in heads if h.layer >= shape.num_layers or h.head >= shape.num_heads]
    if not heads or foreign:
        raise SettingsError(
            f"heads must name at least one of the model's {shape.num_layers} x {shape.num_heads} "
            f"heads, got {foreign[0] if foreign else 'none'}; rank this model's heads first"
        )
    limit = token_limit(model, settings)
    remaining = iter(texts)
    while window := list(itertools.islice(remaining, WINDOW_SAMPLES)):
        readable = []
        for text in window:
            reading = text_to_read(text, settings, limit)
            if isinstance(reading, UnscoredSample):
                yield reading
            else:
                readable.append(reading)
        for batch in batch_by_length(readable, max_batch_tokens):
            yield from _score_batch(model, batch, heads, settings)


# what is read of a text ---------------------------------------------------------------------------


def token_limit(model: PreTrainedModel, settings: ScoringSettings) -> int:
    """Returns how many tokens of a text are read at most."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(n for n in (settings.max_tokens, context, 2**62) if n is not None)


@dataclass(frozen=True, slots=True)
class TextToRead:
    """The tokens the model reads of a text, and the half-open spans of the queries and the keys."""

    text: TokenizedText
    input_ids: tuple[int, ...]
    queries: tuple[int, int]
    keys: tuple[int, int]
    is_truncated: bool

    @property
    def sample_id(self) -> str:
        """The sample's id."""
        return self.text.sample_id


def text_to_read(
    text: TokenizedText, settings: ScoringSettings, limit: int
) -> TextToRead | UnscoredSample:
    """Returns what is read of a text of which `limit` tokens are, or why it cannot be scored."""
    prompt_only = settings.span == "prompt"
    ids = text.input_ids[: text.response_start] if prompt_only else text.input_ids
    if len(ids) > limit and settings.long_prompts == "quarantine":
        detail = f"{len(ids)} tokens, at most {limit} can be scored"
        return UnscoredSample(text.sample_id, "too_long", detail)
    is_truncated = len(ids) > limit
    ids = ids[:limit]
    if not prompt_only:
        start, stop = text.response_start, len(ids)
    elif settings.tokens == "content" or find_reading(settings).marks_of_prompt:
        start, stop = text.content
    else:
        start, stop = 0, len(ids)
    start, stop = min(start, len(ids)), min(stop, len(ids))
    if stop - start < settings.min_tokens:
        return _too_few(text.sample_id, stop - start, settings)
    first_query = stop - 1 if settings.queries == "last" else start
    return TextToRead(text, ids, (first_query, stop), (start, stop), is_truncated)


def _too_few(sample_id: str, usable: int, settings: ScoringSettings) -> UnscoredSample:
    detail = f"{usable} usable tokens, at least {settings.min_tokens} are needed"
    return UnscoredSample(sample_id, "too_few_tokens", detail)


# what the heads do with it ------------------------------------------------------------------------

Look: TypeAlias = Callable[[AttentionCall, Sequence[int]], Tensor]
"""Takes a layer's attention and some of its heads; returns what is seen of them, (B, h, ...)."""


def _score_batch(
    model: PreTrainedModel,
    batch: Sequence[TextToRead],
    heads: Sequence[HeadId],
    settings: ScoringSettings,
) -> Iterator[SampleScore | UnscoredSample]:
    marks = mark_texts(
        [one.text for one in batch],
        [len(one.input_ids) for one in batch],
        queries=[one.queries for one in batch],
        keys=[one.keys for one in batch],
    ).to(model.device)
    reading = find_reading(settings)
    if reading.of_heads:
        read = reading.load()
        of_heads = read_heads(model, batch, heads, lambda call, here: read(call, here, marks))
        for text, values in zip(batch, of_heads, strict=True):
            yield _finish(text, values.mean(), text.keys[1] - text.keys[0])
        return
    received = read_heads(model, batch, heads, received_by(marks.queries, settings))
    for text, values in zip(batch, received, strict=True):
        attention, num_queries = values[..., slice(*text.keys)].unbind(1)
        yield _score_one(text, attention, num_queries, settings)


def received_by(queries: Tensor, settings: ScoringSettings) -> Look:
    """Returns what tells what every token receives, and from how many queries, (B, h, 2, T)."""
    lift = settings.reading == "attention_lift"

    def look(call: AttentionCall, heads: Sequence[int]) -> Tensor:
        weights = queries * call.num_visible() if lift else queries
        attention = received_attention(call, heads, weights, without_self=lift)
        counts = (
            num_queries_seeing(call, queries) if lift else queries.double().sum(-1, keepdim=True)
        )
        return torch.stack([attention, counts[:, None].expand_as(attention)], 2)

    return look


@torch.inference_mode()
def read_heads(
    model: PreTrainedModel, batch: Sequence[TextToRead], heads: Sequence[HeadId], look: Look
) -> Tensor:
    """Returns what `look` sees of all heads, by layer and head, in a forward up to the deepest."""
    by_layer = {
        layer: [head.head for head in group]
        for layer, group in itertools.groupby(sorted(set(heads)), key=lambda head: head.layer)
    }
    seen: list[Tensor] = []

    def intercept(call: AttentionCall, attend: Attend) -> Tensor:
        here = by_layer.get(call.layer)
        if here is not None:
            seen.append(look(call, here).cpu())
        if call.layer == max(by_layer):
            raise StopForward
        return attend()

    with intercept_attention(model, intercept):
        decoder_of(model)(input_ids=padded_ids(batch).to(model.device), use_cache=False)
    return torch.cat(seen, 1)


# what is made of it -------------------------------------------------------------------------------


def _score_one(
    text: TextToRead, attention: Tensor, num_queries: Tensor, settings: ScoringSettings
) -> SampleScore | UnscoredSample:
    """Returns the score from what each token received, and from how many: (heads, T) each."""
    if settings.reduce == "mean_then_variance":
        attention, num_queries = attention.sum(0, True), num_queries.sum(0, True)
    if not bool(attention.isfinite().all()):
        return UnscoredSample(text.sample_id, "not_finite", "the model's attention has NaN")
    # Under attention_lift nobody else sees the last token, or one before a sliding window.
    usable = int((num_queries > 0).sum(-1).min())
    if usable < settings.min_tokens:
        return _too_few(text.sample_id, usable, settings)
    profile, weights = profile_of(attention, num_queries, settings)
    if settings.reading == "attention_lift":
        readings = _weighted_variance(profile, weights, mean=1.0 if _is_partial(settings) else None)
    else:
        readings = _variance(profile)
        if settings.reading == "attention_cv2":
            readings = readings * usable**2
    return _finish(text, readings.mean(), usable)


def profile_of(
    attention: Tensor, num_queries: Tensor, settings: ScoringSettings
) -> tuple[Tensor, Tensor]:
    """Returns what each token receives of a query's attention, and its weight in the variance.

    All have one row a head, or one for their sum, and one column a token, (heads, T). A row without
    any attention is NaN.

    Args:
        attention: the sum over the queries of what each token receives.
        num_queries: how many queries that is from.
        settings: the reading and its options.
    """
    profile = attention / num_queries.clamp_min(1)
    if settings.reading == "attention_lift":
        weights = num_queries / num_queries.sum(-1, True)
        total = (weights * profile).sum(-1, True)
    else:
        weights = torch.full_like(profile, 1 / profile.shape[-1])
        total = profile.sum(-1, True)
    profile = profile / total if _is_partial(settings) else profile
    return profile.where(total > 0, torch.nan), weights


def _is_partial(settings: ScoringSettings) -> bool:
    """Returns whether only a part of what is read counts: its profile is then renormalised."""
    return settings.tokens == "content" or settings.span == "response"


def _finish(text: TextToRead, reading: Tensor, usable: int) -> SampleScore | UnscoredSample:
    score = float(reading)
    if not math.isfinite(score):
        detail = f"no attention on the {usable} usable tokens"
        return UnscoredSample(text.sample_id, "no_attention_mass", detail)
    return SampleScore(text.sample_id, score, usable, text.is_truncated)


def _variance(profile: Tensor) -> Tensor:
    """Returns sum((a - 1/T)^2) / T of each row; in this form nothing cancels.

    A row that is constant but for the rounding of its numbers has none: it would be drawn by that.
    """
    num_tokens = profile.shape[-1]
    variance = (profile - 1 / num_tokens).square().sum(-1) / num_tokens
    rounding = torch.finfo(torch.float32).eps / num_tokens
    return variance.masked_fill(variance <= rounding**2, 0.0)


def _weighted_variance(profile: Tensor, weights: Tensor, *, mean: float | None) -> Tensor:
    """Returns the weighted variance of each row about `mean`, if None about its own."""
    middle = (weights * profile).sum(-1, True) if mean is None else mean
    return (weights * (profile - middle).square()).sum(-1)
