"""Answers from vLLM, as lm-eval asks for them, with the prompts and the truncation of `generation`.

Imported only by the evaluator and only where vLLM is asked for: it is an extra of its own.
"""

from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM
from transformers import GenerationConfig
from vllm import SamplingParams

from resources.generation_text import (
    encode_prompt,
    end_tokens,
    fill_template,
    has_template,
    read_response,
)
from resources.language_model import ModelFiles


class AnsweringEngine(VLLM):  # type: ignore[misc]
    """lm-eval's vLLM model, with truncation seen and the prompt's tokens left whole.

    As `generation.AnsweringModel` it differs in `generate_until` alone. Sampled answers differ from
    that one's: each has a seed of its own, of the pass and the problem.
    """

    device = torch.device("cpu")  # of this process: the engine has its own, and its own generators

    def __init__(self, files: ModelFiles, *, batch_size: int) -> None:
        super().__init__(
            pretrained=str(files.folder),
            dtype=files.dtype,
            max_model_len=files.max_length,
            batch_size=batch_size,
            max_batch_size=batch_size,
            # Nothing of the model's own settings: the evaluation's say all there is to say.
            generation_config="vllm",
        )
        self.prompt_template = files.prompt_template
        configured = GenerationConfig.from_pretrained(files.folder) if files.has_defaults else None
        self._ends = end_tokens(self.tokenizer, configured.eos_token_id if configured else None)
        self.truncated: list[bool] = []

    @property
    def has_template(self) -> bool:
        """Whether prompts are rendered before they are tokenised."""
        return has_template(self.tokenizer, self.prompt_template)

    def begin_pass(self, seed: int, report: Any) -> None:
        """Sets what the next answers are drawn with, and who hears of them."""
        self._seed, self._report = seed, report

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
        until = [text for text in settings["until"] if text]
        prompts = [
            encode_prompt(self.tokenizer, request.args[0], self.prompt_template)
            for request in requests
        ]
        rooms = [self.max_length - len(prompt) for prompt in prompts]
        asked = [i for i, room in enumerate(rooms) if room > 0]
        responses = [""] * len(requests)
        self.truncated = [True] * len(requests)
        outputs = self._model_generate(
            requests=[prompts[i] for i in asked],
            generate=True,
            sampling_params=[
                self._sampling(settings, until, rooms[i], requests[i].doc_id) for i in asked
            ],
        )
        for i, output in zip(asked, outputs, strict=True):
            answer = output.outputs[0]
            responses[i], _ = read_response(self.tokenizer, answer.token_ids, self._ends, until)
            self.truncated[i] = answer.finish_reason == "length"
        self._report(len(requests))
        return responses

    def _sampling(
        self, settings: dict[str, Any], until: list[str], room: int, doc_id: int
    ) -> SamplingParams:
        sampled = settings["do_sample"]
        return SamplingParams(
            max_tokens=min(room, settings["max_gen_toks"]),
            stop=until,
            stop_token_ids=self._ends,
            temperature=settings["temperature"] if sampled else 0.0,
            top_p=settings["top_p"] if sampled else 1.0,
            top_k=0,
            seed=(self._seed << 20) + doc_id if sampled else None,
        )
