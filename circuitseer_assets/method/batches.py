"""Texts in, batches out: texts of like length together, under a budget of tokens.

Batches are padded on the right without a mask: under causal attention no token sees the padding.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

WINDOW_SAMPLES = 512
"""How many texts are looked ahead to form batches of like lengths."""


class HasTokens(Protocol):
    """A text that has an id and is tokens."""

    @property
    def sample_id(self) -> str:
        """The sample it belongs to."""

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Its tokens."""


AnyText = TypeVar("AnyText", bound=HasTokens)


def batch_by_length(texts: Sequence[AnyText], max_batch_tokens: int) -> Iterator[list[AnyText]]:
    """Returns the texts, shortest first, in batches of so many tokens at most, padding included.

    A text that is longer by itself makes a batch of its own.
    """
    batch: list[AnyText] = []
    for text in sorted(texts, key=lambda text: (len(text.input_ids), text.sample_id)):
        if batch and (len(batch) + 1) * len(text.input_ids) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def padded_ids(batch: Sequence[HasTokens]) -> Tensor:
    """Returns the texts' tokens, (B, T), each padded by its own last token."""
    length = max(len(text.input_ids) for text in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for row, text in enumerate(batch):
        ids[row] = text.input_ids[-1]
        ids[row, : len(text.input_ids)] = torch.tensor(text.input_ids)
    return ids
