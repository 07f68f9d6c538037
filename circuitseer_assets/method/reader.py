"""The base model as scorers see it: how it reads a sample, and whose attention is looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from circuitseer_assets.records import HeadId, Message, Sample, TokenizedText

Tokenize = Callable[[str, Sequence[Message], str | None], TokenizedText]
"""Takes a sample's id, its turns and, or None, its response; returns what the model reads."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A base model that reads samples.

    Attributes:
        model: in evaluation mode.
        tokenize: turns a chat into tokens.
        heads: whose attention is read, or taken away.
        find_token: the id of the token whose text is exactly this, None where there is none.
        max_batch_tokens: how many tokens run at once, padding included; at least one text does.
    """

    model: PreTrainedModel
    tokenize: Tokenize
    heads: tuple[HeadId, ...]
    find_token: Callable[[str], int | None]
    max_batch_tokens: int

    @property
    def max_tokens(self) -> int:
        """How many tokens the model can read at once."""
        named = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return named or 2**62

    def read(self, sample: Sample, *, with_response: bool) -> TokenizedText:
        """Returns the sample as the model reads it, with or without its response."""
        return self.tokenize(
            sample.sample_id, sample.messages, sample.response if with_response else None
        )
