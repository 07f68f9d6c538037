"""Texts in, the loss of every response token out: what a model expects, and what it does not.

Logits are computed at the response's positions alone and a few rows at a time, for they are as
wide as the vocabulary.
"""

import itertools
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitseer_assets.method.attention import (
    Attend,
    AttentionCall,
    Interceptor,
    decoder_of,
    intercept_attention,
    uniform_output,
)
from circuitseer_assets.method.batches import WINDOW_SAMPLES, batch_by_length, padded_ids
from circuitseer_assets.records import HeadId, TokenizedText

_LOGIT_ROWS = 128

Floats = NDArray[np.float64]


def next_token_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Returns the logits of what follows each final, normalised state, (N, V) of (N, C)."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    config = model.config.get_text_config()
    logits: Tensor = head(states).float()
    # What some models do to the output of their head, under the names of their configurations.
    logits = logits / (getattr(config, "logits_scaling", None) or 1)  # Granite
    logits = logits * (getattr(config, "logit_scale", None) or 1)  # Cohere
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return logits if softcap is None else (logits / softcap).tanh() * softcap


def next_token_losses(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Returns -log p of each target given the state before it, (N,), in nats.

    Args:
        model: whose output head is asked.
        states: final, normalised states, (N, C).
        targets: token ids, (N,).
    """
    losses = []
    for first in range(0, len(targets), _LOGIT_ROWS):
        rows = slice(first, first + _LOGIT_ROWS)
        logits = next_token_logits(model, states[rows])
        losses.append(nn.functional.cross_entropy(logits, targets[rows], reduction="none"))
    return torch.cat(losses)


def response_losses(
    model: PreTrainedModel,
    texts: Iterable[TokenizedText],
    *,
    max_batch_tokens: int,
    uniform_heads: AbstractSet[HeadId] = frozenset(),
) -> Iterator[tuple[str, Floats]]:
    """Returns each sample's id and the loss of its response's tokens, (R,), in nats, in any order.

    A text without a prompt loses its first token, which nothing predicts.

    Args:
        model: a decoder in evaluation mode.
        texts: prompts with their responses; read lazily, some hundreds ahead.
        max_batch_tokens: how many tokens run at once, padding included; at least one text does.
        uniform_heads: heads that attend evenly to all they see while the texts are read.
    """
    remaining = iter(texts)
    while window := list(itertools.islice(remaining, WINDOW_SAMPLES)):
        for batch in batch_by_length(window, max_batch_tokens):
            yield from zip(
                (text.sample_id for text in batch),
                _batch_losses(model, batch, uniform_heads),
                strict=True,
            )


@torch.inference_mode()
def _batch_losses(
    model: PreTrainedModel, batch: list[TokenizedText], uniform_heads: AbstractSet[HeadId]
) -> list[Floats]:
    ids = padded_ids(batch).to(model.device)
    with intercept_attention(model, _make_uniform(uniform_heads)):
        states = decoder_of(model)(input_ids=ids, use_cache=False)[0]  # (B, T, C)
    losses = []
    for row, text in enumerate(batch):
        start, stop = max(text.response_start, 1), len(text.input_ids)
        # The token at t is predicted from the state at t - 1.
        loss = next_token_losses(model, states[row, start - 1 : stop - 1], ids[row, start:stop])
        losses.append(loss.double().cpu().numpy())
    return losses


def _make_uniform(heads: AbstractSet[HeadId]) -> Interceptor:
    by_layer = {
        layer: [head.head for head in group]
        for layer, group in itertools.groupby(sorted(heads), key=lambda head: head.layer)
    }

    def intercept(call: AttentionCall, attend: Attend) -> Tensor:
        output = attend()  # (B, T, H, V)
        if here := by_layer.get(call.layer):
            output[:, :, here] = uniform_output(call, here)
        return output

    return intercept
