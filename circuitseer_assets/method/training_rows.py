"""Samples in, training rows out: token ids, and where the response starts that carries the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.chat_text import render_prompt, render_response
from circuitseer_assets.records import Sample, digest_of
from circuitseer_assets.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One sample as the model is trained on it: the loss is taken from `response_start` on."""

    sample_id: str
    input_ids: tuple[int, ...]
    response_start: int


@dataclass(frozen=True, slots=True)
class TokenizedRows:
    """The rows to train on, and the ids of the samples that were too long."""

    rows: tuple[TrainingRow, ...]
    dropped: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of every token and of where each response starts."""
        return digest_of([[row.input_ids, row.response_start] for row in self.rows])


def tokenize_samples(
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    *,
    prompt_template: str | None,
) -> TokenizedRows:
    """Returns the samples as token ids, with those too long dropped or cut, and named.

    A row that is cut loses the end of its response; a row whose prompt alone fills
    `training.max_length` is dropped either way.

    Raises:
        SettingsError: no row is left, or there is no template to render the prompt with.
        ModelError: the chat template refuses the turns, or changes the problem's text.
    """
    rows: list[TrainingRow] = []
    dropped: list[str] = []
    truncated: list[str] = []
    for sample in samples:
        row = tokenize_sample(tokenizer, sample, prompt_template=prompt_template)
        if len(row.input_ids) <= settings.max_length:
            rows.append(row)
        elif settings.long_rows == "truncate" and row.response_start < settings.max_length:
            cut = row.input_ids[: settings.max_length]
            rows.append(TrainingRow(row.sample_id, cut, row.response_start))
            truncated.append(sample.sample_id)
        else:
            dropped.append(sample.sample_id)
    if not rows:
        reason = (
            f"all {len(dropped)} samples are longer" if dropped else "the subset holds no sample"
        )
        raise SettingsError(
            f"training.max_length must leave at least one sample to train on, got "
            f"{settings.max_length} tokens, and {reason}; raise training.max_length, or set "
            f"training.long_rows to truncate"
        )
    return TokenizedRows(tuple(rows), tuple(dropped), tuple(truncated))


def tokenize_sample(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, *, prompt_template: str | None
) -> TrainingRow:
    """Returns one sample as token ids, ending with the end of the assistant's turn.

    The prompt's tokens are those that a model meets when it is asked: where a token would reach
    from the prompt into the response, the two are tokenised apart.

    Raises:
        SettingsError: the tokenizer has no chat template, and no `prompt_template` stands in.
        ModelError: the chat template refuses the turns, or changes the problem's text.
    """
    if prompt_template is None and tokenizer.chat_template is None:
        raise SettingsError(
            "base_model.prompt_template must be set for a tokenizer without a chat template, got "
            "none; set it in circuitseer.yaml, with {prompt} where the problem's text goes"
        )
    messages = sample.messages
    prompt = render_prompt(tokenizer, messages, prompt_template)
    response = render_response(tokenizer, messages, sample.response, prompt, prompt_template)
    if not _ends_turn(tokenizer, response):
        # Some templates forget the end of a turn; without it, the model would not learn to stop.
        response += str(tokenizer.eos_token or "")
    special = prompt.add_special_tokens
    prompt_ids = _encode(tokenizer, prompt.text, special=special)
    ids = _encode(tokenizer, prompt.text + response, special=special)
    if ids[: len(prompt_ids)] != prompt_ids:
        ids = prompt_ids + _encode(tokenizer, response, special=False)
    return TrainingRow(sample.sample_id, tuple(ids), len(prompt_ids))


def count_steps(num_samples: int, settings: TrainingSettings) -> int:
    """Returns the number of optimiser steps that training on `num_samples` takes."""
    if settings.max_steps is not None:
        return settings.max_steps
    return math.ceil(settings.epochs * steps_an_epoch(num_samples, settings))


def steps_an_epoch(num_samples: int, settings: TrainingSettings) -> int:
    """Returns the number of optimiser steps that one pass over `num_samples` takes."""
    batches = math.ceil(num_samples / settings.batch_size)
    return math.ceil(batches / settings.gradient_accumulation_steps)


def _ends_turn(tokenizer: PreTrainedTokenizerBase, response: str) -> bool:
    return any(response.endswith(token) for token in tokenizer.all_special_tokens)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    # Some tokenizers end every text themselves, even a prompt; that token stands for no character.
    is_appended = special and ids[-1:] == [tokenizer.eos_token_id] and len(set(offsets[-1])) == 1
    return ids[:-1] if is_appended else ids
