"""Answers from a Hugging Face model, as lm-eval asks for them, with what lm-eval does not tell.

Imported only by the evaluator and only when it runs: lm-eval and torch take long to import.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import GenerationConfig

from resources.generation_text import (
    encode_prompt,
    end_tokens,
    fill_template,
    has_template,
    read_response,
)


class AnsweringModel(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model, with truncation seen and the prompt's tokens left whole.

    It differs from `HFLM` in `generate_until` alone: a response's own tokens say whether it ended;
    a prompt is never cut to make room; nothing of the model's `generation_config` but its end
    tokens is used, so that the evaluation's settings say all there is to say.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int,
        prompt_template: str | None,
    ) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size
        )
        self.prompt_template = prompt_template
        self.truncated: list[bool] = []

        self._report: Callable[[int], None]

    @property
    def has_template(self) -> bool:
        """Whether prompts are rendered before they are tokenised."""
        return has_template(self.tokenizer, self.prompt_template)

    def begin_pass(self, seed: int, report: Callable[[int], None]) -> None:
        """Sets what the next answers are drawn with, and who hears of them."""
        torch.manual_seed(seed)
        self._report = report

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the conversation as the model reads it."""
        if self.prompt_template is None:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        return fill_template(self.prompt_template, chat_history)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the responses in order; `truncated` then says which of them did not end."""
        settings = dict(requests[0].args[1])
        until = [text for text in settings.pop("until") if text]
        max_new_tokens = settings.pop("max_gen_toks")
        prompts = [self._encode(request.args[0]) for request in requests]
        responses = [""] * len(requests)
        self.truncated = [True] * len(requests)
        done = 0
        for batch in self._batches([len(prompt) for prompt in prompts], max_new_tokens):
            room = self.max_length - len(prompts[batch[0]])
            if room > 0:
                tokens = self._generate(
                    [prompts[i] for i in batch], min(room, max_new_tokens), until, settings
                )
                for i, row in zip(batch, tokens, strict=True):
                    responses[i], self.truncated[i] = read_response(
                        self.tokenizer, row, self.end_tokens, until
                    )
            done += len(batch)
            self._report(done)
        return responses

    def _encode(self, text: str) -> list[int]:
        return encode_prompt(self.tokenizer, text, self.prompt_template)

    def _batches(self, lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        """Returns batches of positions, longest first.

        A prompt that leaves less than `max_new_tokens` is answered alone: its smaller room must
        not become its neighbours'.
        """
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        alone = [i for i in order if lengths[i] + max_new_tokens > self.max_length]
        together = [i for i in order if lengths[i] + max_new_tokens <= self.max_length]
        yield from ([i] for i in alone)
        size = int(self.batch_size)
        for begin in range(0, len(together), size):
            yield together[begin : begin + size]

    def _generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        until: list[str],
        settings: dict[str, Any],
    ) -> list[list[int]]:
        longest = max(len(prompt) for prompt in prompts)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])  # (B, T)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        stop = {}
        if until:
            stop["stopping_criteria"] = stop_sequences_criteria(
                self.tokenizer, until, longest, len(prompts)
            )
        asked = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            eos_token_id=self.end_tokens,
            pad_token_id=pad,
            use_cache=True,
            **settings,
        )
        with torch.inference_mode(), self._only_what_is_asked():
            output = self.model.generate(
                input_ids=input_ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=asked,
                **stop,
            )
        return [list(row) for row in output[:, longest:].tolist()]

    @contextmanager
    def _only_what_is_asked(self) -> Iterator[None]:
        # Whatever is not asked for would be taken from the model's own configuration.
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.model.generation_config = own

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a response: the tokenizer's, and those the model was made with."""
        return end_tokens(self.tokenizer, self.model.generation_config.eos_token_id)
