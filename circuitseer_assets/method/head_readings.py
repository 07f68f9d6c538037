"""Readings of each head by itself: a layer's attention in, one number a text and head out.

All are reduced block by block: memory grows with T.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor

from circuitseer_assets.method.attention import (
    AttentionCall,
    attention_focus,
    mean_look_back,
    received_attention,
)
from circuitseer_assets.records import TokenizedText

Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Marks:
    """Where what a reading looks at lies in a batch of texts: 1 there and 0 elsewhere, (B, T).

    Attributes:
        queries, keys: those that the settings `queries`, `tokens` and `span` name.
        content: the problem's own text, template left out.
        numbers: its tokens with a digit.
        question: its last sentence.
        facts: what comes before that.
        last: the prompt's last token, where the answer begins.
    """

    queries: Tensor
    keys: Tensor
    content: Tensor
    numbers: Tensor
    question: Tensor
    facts: Tensor
    last: Tensor

    def to(self, device: torch.device) -> "Marks":
        """Returns the same marks on another device."""
        return Marks(*(getattr(self, mark.name).to(device) for mark in fields(self)))


def mark_texts(
    texts: Sequence[TokenizedText],
    lengths: Sequence[int],
    *,
    queries: Sequence[Span],
    keys: Sequence[Span],
) -> Marks:
    """Returns where in each text lies what a reading looks at, nothing beyond what is read of it.

    Args:
        texts: the batch; T is the longest of what is read.
        lengths: how many of its tokens are read of each text.
        queries, keys: the half-open spans that the settings name.
    """

    def mark(spans: Iterable[Iterable[int]]) -> Tensor:
        marks = torch.zeros(len(texts), max(lengths))
        for row, (places, length) in enumerate(zip(spans, lengths, strict=True)):
            marks[row, [i for i in places if i < length]] = 1.0
        return marks

    content = [text.content for text in texts]
    asked = [t.content[0] if t.question_start is None else t.question_start for t in texts]
    return Marks(
        queries=mark(range(*span) for span in queries),
        keys=mark(range(*span) for span in keys),
        content=mark(range(*span) for span in content),
        numbers=mark(text.numbers for text in texts),
        question=mark(range(at, stop) for at, (_, stop) in zip(asked, content, strict=True)),
        facts=mark(range(start, at) for at, (start, _) in zip(asked, content, strict=True)),
        last=mark([length - 1] for length in lengths),
    )


def read_focus(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns how few of the keys a query looks at, mean over the queries: `attention_focus`."""
    return attention_focus(call, heads, marks.queries, marks.keys)


def read_content_mass(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns the share of the problem's attention that stays on the problem."""
    return _mass(call, heads, marks.content, marks.content)


def read_number_mass(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns the share of the problem's attention that falls on its numbers."""
    return _mass(call, heads, marks.content, marks.numbers)


def read_question_to_facts(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns the share of the question's attention that falls on what was given before it."""
    return _mass(call, heads, marks.question, marks.facts)


def read_answer_to_content(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns the share of the last token's attention that falls on the problem."""
    return _mass(call, heads, marks.last, marks.content)


def read_answer_to_numbers(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns the share of the last token's attention that falls on the problem's numbers."""
    return _mass(call, heads, marks.last, marks.numbers)


def read_look_back(call: AttentionCall, heads: Sequence[int], marks: Marks) -> Tensor:
    """Returns the mean of log(1 + distance) over the attention within the problem."""
    return mean_look_back(call, heads, marks.content)


def _mass(call: AttentionCall, heads: Sequence[int], queries: Tensor, keys: Tensor) -> Tensor:
    """Returns the mean over queries of their attention on the keys; NaN without either of them.

    A problem of one sentence gives no facts to look back at: that is no attention of 0.
    """
    received = received_attention(call, heads, queries)  # (B, h, T)
    num_queries = queries.sum(-1, dtype=torch.float64)[:, None]
    mass = (received * keys[:, None]).sum(-1) / num_queries
    return mass.where(keys.any(-1)[:, None], torch.nan)
