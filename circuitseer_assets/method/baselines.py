"""The alternatives to the published score, each as a scorer: samples in, scores out.

They are registered in `scorers.py`, which says what each costs. A score above is selected before
one below; which way round that is, is each method's own.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from circuitseer_assets.errors import NotApplicableError
from circuitseer_assets.method.attention import decoder_of
from circuitseer_assets.method.batches import WINDOW_SAMPLES, batch_by_length, padded_ids
from circuitseer_assets.method.reader import Reader
from circuitseer_assets.method.response_loss import next_token_logits, response_losses
from circuitseer_assets.records import (
    PLANTED_NOISE_COLUMN,
    Message,
    Sample,
    SampleScore,
    TokenizedText,
    UnscoredSample,
)
from circuitseer_assets.settings import ScoringSettings

Scores = Iterator[SampleScore | UnscoredSample]
Floats = NDArray[np.float64]

# The question of Ask-LLM, as published (arXiv 2402.09668, page 4).
_ASKED = """###
{text}
###

Does the previous paragraph demarcated within ### and ### contain informative signal for \
pre-training a large-language model? An informative datapoint should be well-formatted, contain \
some usable knowledge of the world, and strictly NOT have any harmful, racist, sexist, etc. content.

OPTIONS:
- yes
- no
"""
_YES, _NO = ("yes",), ("no",)
# A model that spends less than this on either answer, on average, does not answer the question.
_MIN_ANSWERED = 0.01


# without a model ----------------------------------------------------------------------------------


def score_equally(reader: Reader, samples: Iterable[Sample], settings: ScoringSettings) -> Scores:
    """Returns 1 for every sample: the draw's random numbers alone decide."""
    for sample in samples:
        yield SampleScore(sample.sample_id, 1.0, _num_tokens(reader, sample))


def score_length(reader: Reader, samples: Iterable[Sample], settings: ScoringSettings) -> Scores:
    """Returns the number of tokens of prompt and response."""
    for sample in samples:
        num_tokens = _num_tokens(reader, sample)
        yield SampleScore(sample.sample_id, float(num_tokens), num_tokens)


def score_shortness(reader: Reader, samples: Iterable[Sample], settings: ScoringSettings) -> Scores:
    """Returns 1 over the number of the prompt's tokens.

    It is what the published reading comes to where one token gets a fixed share s of all attention
    and the others next to none: the variance is then about s^2 / T.
    """
    for sample in samples:
        num_tokens = len(reader.read(sample, with_response=False).input_ids)
        yield SampleScore(sample.sample_id, 1 / num_tokens, num_tokens)


def score_by_planted_noise(
    reader: Reader, samples: Iterable[Sample], settings: ScoringSettings
) -> Scores:
    """Returns 1 for a right solution and 0 for one that the corpus says was planted wrong.

    Raises:
        NotApplicableError: the corpus does not say.
    """
    for sample in samples:
        is_noise = sample.original.get(PLANTED_NOISE_COLUMN)
        if is_noise is None:
            raise NotApplicableError(
                f"scoring.scorer 'oracle' needs a corpus with the column {PLANTED_NOISE_COLUMN}, "
                f"{sample.source} has none; set corpus.wrong_share, or choose another scorer"
            )
        yield SampleScore(sample.sample_id, float(not is_noise), _num_tokens(reader, sample))


def _num_tokens(reader: Reader, sample: Sample) -> int:
    return len(reader.read(sample, with_response=True).input_ids)


# by the loss --------------------------------------------------------------------------------------


def score_loss(reader: Reader, samples: Iterable[Sample], settings: ScoringSettings) -> Scores:
    """Returns the mean loss of the response's tokens given the prompt, in nats."""
    for sample_id, reading in _losses(reader, samples, settings):
        if isinstance(reading, UnscoredSample):
            yield reading
        else:
            yield _score_of(sample_id, float(reading.mean()), len(reading))


def score_instruction_following_difficulty(
    reader: Reader, samples: Iterable[Sample], settings: ScoringSettings
) -> Scores:
    """Returns the mean loss of the response given the prompt, over that of the response alone.

    Both means are over the same tokens: the response's but the first, which nothing predicts where
    there is no prompt. Above 1 the prompt only misleads the model; such a sample has no score.

    Reference: Li et al., From Quantity to Quality, arXiv 2308.12032.
    """
    for sample_id, losses in _loss_pairs(reader, samples, settings, without_prompt=True):
        if isinstance(losses, UnscoredSample):
            yield losses
        else:
            with_prompt, by_itself = losses
            yield _difficulty(sample_id, with_prompt[1:], by_itself)


def _difficulty(
    sample_id: str, with_prompt: Floats, by_itself: Floats
) -> SampleScore | UnscoredSample:
    alone = float(by_itself.mean())
    ratio = float(with_prompt.mean()) / alone if alone > 0 else math.inf
    if ratio > 1:
        detail = f"the response is {ratio:.4g} times as hard given the prompt"
        return UnscoredSample(sample_id, "prompt_misleads", detail)
    return _score_of(sample_id, ratio, len(by_itself))


def score_attention_influence(
    reader: Reader, samples: Iterable[Sample], settings: ScoringSettings
) -> Scores:
    """Returns (masked loss - base loss) / base loss of the response.

    Masked means that the chosen heads, all at once, attend evenly to all they see. Below 0 the
    model does better without them: such a sample gets 0.

    Reference: Hua et al., AttentionInfluence, arXiv 2505.07293; Liu et al., AIR, arXiv 2512.13279
    (the loss of the response, as here). Which heads is the setting `scoring.heads`: theirs are
    retrieval heads.
    """
    for sample_id, losses in _loss_pairs(reader, samples, settings, uniform=True):
        if isinstance(losses, UnscoredSample):
            yield losses
        else:
            clean, masked = (float(tokens.mean()) for tokens in losses)
            rise = (masked - clean) / clean if clean > 0 else math.inf
            yield _score_of(sample_id, max(rise, 0.0), len(losses[0]))


def _loss_pairs(
    reader: Reader, samples: Iterable[Sample], settings: ScoringSettings, **otherwise: bool
) -> Iterator[tuple[str, tuple[Floats, Floats] | UnscoredSample]]:
    """Returns the losses as the sample is and read otherwise, or the reason why one is missing."""
    for window in _windows(samples):
        plain = dict(_losses(reader, window, settings))
        readable = [s for s in window if not isinstance(plain[s.sample_id], UnscoredSample)]
        other = dict(_losses(reader, readable, settings, **otherwise))
        for sample in window:
            first = plain[sample.sample_id]
            if isinstance(first, UnscoredSample):
                yield sample.sample_id, first
                continue
            second = other[sample.sample_id]
            if isinstance(second, UnscoredSample):
                yield sample.sample_id, second
            else:
                yield sample.sample_id, (first, second)


def _losses(
    reader: Reader,
    samples: Iterable[Sample],
    settings: ScoringSettings,
    *,
    without_prompt: bool = False,
    uniform: bool = False,
) -> Iterator[tuple[str, Floats | UnscoredSample]]:
    """Returns the loss of every response token, or the reason why there is none."""
    limit = min(reader.max_tokens, settings.max_tokens or reader.max_tokens)
    unreadable: list[UnscoredSample] = []

    def readable() -> Iterator[TokenizedText]:
        for sample in samples:
            text = reader.read(sample, with_response=True)
            if without_prompt:
                ids = text.input_ids[text.response_start :]
                text = TokenizedText(sample.sample_id, ids, (0, 0), 0)
            num_tokens, num_response = len(text.input_ids), len(text.input_ids)
            num_response -= max(text.response_start, 1)
            if num_tokens > limit:
                detail = f"{num_tokens} tokens with the response, at most {limit} can be read"
                unreadable.append(UnscoredSample(sample.sample_id, "too_long", detail))
            elif num_response < 1:
                detail = "no response token is left to predict"
                unreadable.append(UnscoredSample(sample.sample_id, "too_few_tokens", detail))
            else:
                yield text

    yield from response_losses(
        reader.model,
        readable(),
        max_batch_tokens=reader.max_batch_tokens,
        uniform_heads=frozenset(reader.heads) if uniform else frozenset(),
    )
    for unscored in unreadable:
        yield unscored.sample_id, unscored


def _score_of(sample_id: str, score: float, num_tokens: int) -> SampleScore | UnscoredSample:
    if not math.isfinite(score):
        return UnscoredSample(sample_id, "not_finite", f"the model's loss gives {score}")
    return SampleScore(sample_id, score, num_tokens)


# by asking ----------------------------------------------------------------------------------------


def score_asked_quality(
    reader: Reader, samples: Iterable[Sample], settings: ScoringSettings
) -> Scores:
    """Returns the probability that the model answers "yes" when asked whether the sample is useful.

    Raises:
        NotApplicableError: the model cannot be asked: "yes" is no token of its own, or neither
            answer is likely on the first samples.

    Reference: Sachdeva et al., How to Train Data-Efficient LLMs, arXiv 2402.09668.
    """
    answers = [_answer_tokens(reader, words) for words in (_YES, _NO)]
    limit = min(reader.max_tokens, settings.max_tokens or reader.max_tokens)
    is_first = True
    for window in _windows(samples):
        texts = []
        for sample in window:
            text = _asked(reader, sample)
            if len(text.input_ids) > limit:
                detail = f"{len(text.input_ids)} tokens, at most {limit} can be read"
                yield UnscoredSample(sample.sample_id, "too_long", detail)
            else:
                texts.append(text)
        asked = [
            (text, probabilities)
            for batch in batch_by_length(texts, reader.max_batch_tokens)
            for text, probabilities in zip(batch, _answers(reader, batch, answers), strict=True)
        ]
        if asked and is_first:
            _ensure_answered(np.array([probabilities for _, probabilities in asked]))
            is_first = False
        for text, (yes, _) in asked:
            yield _score_of(text.sample_id, yes, len(text.input_ids))


def _asked(reader: Reader, sample: Sample) -> TokenizedText:
    question = _ASKED.format(text=f"{sample.prompt}\n\n{sample.response}")
    return reader.tokenize(sample.sample_id, [Message("user", question)], None)


@torch.inference_mode()
def _answers(
    reader: Reader, batch: list[TokenizedText], answers: list[list[int]]
) -> list[tuple[float, ...]]:
    states = decoder_of(reader.model)(
        input_ids=padded_ids(batch).to(reader.model.device), use_cache=False
    )[0]
    last = torch.stack([states[row, len(text.input_ids) - 1] for row, text in enumerate(batch)])
    chances = next_token_logits(reader.model, last).softmax(-1)
    return [tuple(float(row[tokens].sum()) for tokens in answers) for row in chances]


def _answer_tokens(reader: Reader, words: tuple[str, ...]) -> list[int]:
    tokens = [
        token_id
        for word in words
        for written in (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
        if (token_id := reader.find_token(written)) is not None
    ]
    if not tokens:
        raise NotApplicableError(
            f"scoring.scorer 'quality' needs a base model that can be asked, this one has no token "
            f"for {words[0]!r}; choose another scorer or base model"
        )
    return sorted(set(tokens))


def _ensure_answered(chances: Floats) -> None:
    answered = float(chances.sum(axis=1).mean())
    if answered < _MIN_ANSWERED:
        raise NotApplicableError(
            f"scoring.scorer 'quality' needs a base model that answers yes or no with a "
            f"probability of at least {_MIN_ANSWERED}, this one does with {answered:.2g}; choose "
            f"another scorer or base model"
        )


# by comparing samples -----------------------------------------------------------------------------


def score_diversity(reader: Reader, samples: Iterable[Sample], settings: ScoringSettings) -> Scores:
    """Returns each sample's distance to those taken before it, in k-center greedy's order.

    The samples' points are the last layer's states averaged over the prompt's tokens. The first
    taken is nearest to the mean of all, with twice the score of the second; then always the sample
    farthest from all taken, ties by sample_id. The n highest scores are k-center greedy's n.
    Time grows with the square of the number of samples.

    Reference: Gonzalez 1985; Sener and Savarese, arXiv 1708.00489.
    """
    lengths: dict[str, int] = {}
    points: dict[str, Floats] = {}
    limit = min(reader.max_tokens, settings.max_tokens or reader.max_tokens)
    for window in _windows(samples):
        texts = []
        for sample in window:
            text = reader.read(sample, with_response=False)
            if len(text.input_ids) > limit:
                detail = f"{len(text.input_ids)} tokens, at most {limit} can be read"
                yield UnscoredSample(sample.sample_id, "too_long", detail)
            else:
                texts.append(text)
        for batch in batch_by_length(texts, reader.max_batch_tokens):
            for text, point in zip(batch, _mean_states(reader, batch), strict=True):
                points[text.sample_id], lengths[text.sample_id] = point, len(text.input_ids)
    if not points:
        return
    ids = sorted(points)
    distances = farthest_first(np.stack([points[sample_id] for sample_id in ids]))
    for sample_id, distance in zip(ids, distances.tolist(), strict=True):
        yield _score_of(sample_id, distance, lengths[sample_id])


@torch.inference_mode()
def _mean_states(reader: Reader, batch: list[TokenizedText]) -> list[Floats]:
    states = decoder_of(reader.model)(
        input_ids=padded_ids(batch).to(reader.model.device), use_cache=False
    )[0]
    return [
        states[row, : len(text.input_ids)].double().mean(0).cpu().numpy()
        for row, text in enumerate(batch)
    ]


def farthest_first(points: Floats) -> Floats:
    """Returns each point's distance to those taken before it, (N,); points are (N, C).

    The first taken is the one nearest to the mean, and gets twice the second's distance.
    """
    first = int(np.argmin(np.linalg.norm(points - points.mean(axis=0), axis=1)))
    nearest = np.linalg.norm(points - points[first], axis=1)  # to any taken
    taken_at = np.full(len(points), np.nan)
    taken_at[first] = 2 * nearest.max() if len(points) > 1 else 1.0
    nearest[first] = -np.inf
    for _ in range(len(points) - 1):
        farthest = int(np.argmax(nearest))
        taken_at[farthest] = nearest[farthest]
        np.minimum(nearest, np.linalg.norm(points - points[farthest], axis=1), out=nearest)
        nearest[farthest] = -np.inf
    return taken_at


def _windows(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while window := list(itertools.islice(remaining, WINDOW_SAMPLES)):
        yield window
