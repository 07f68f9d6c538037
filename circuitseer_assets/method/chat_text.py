"""Renders chats as the text a model reads, and finds the problem's own text and the reply in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitseer_assets.errors import ModelError
from circuitseer_assets.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE_END = re.compile(r"[.!?]\s+(?=\S)")
# A stand-in for a text: no template changes it, no text holds it.
_MARKER = "circuitseer-0f6b2d-marker"
# Some templates tell the model today's date, and a score must be the same tomorrow.
_DATE = "26 Jul 2024"
_SAME_DATE_EVER = f"{{%- macro strftime_now(format) -%}}{_DATE}{{%- endmacro -%}}"


@dataclass(frozen=True, slots=True)
class PromptText:
    """A rendered prompt and the span of the problem's own text in it, in characters."""

    text: str
    content: tuple[int, int]
    add_special_tokens: bool


def question_span(text: str, content: tuple[int, int]) -> tuple[int, int]:
    """Returns where the last sentence of the problem in `text` lies, in characters.

    It is all of the problem where that is one sentence.
    """
    start, stop = content
    ends = [found.end() for found in _SENTENCE_END.finditer(text, start, stop)]
    return (ends[-1] if ends else start), stop


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    prompt_template: str | None,
) -> PromptText:
    """Returns the prompt's text up to where the model would answer.

    With `prompt_template`, the turns are joined by blank lines and put in the place of {prompt},
    and the tokenizer adds its own special tokens; else the chat template says all. The content is
    the last user message.

    Raises:
        ModelError: the template drops or changes the problem's text.
    """
    if prompt_template is not None:
        before, _, after = prompt_template.partition("{prompt}")
        problem = "\n\n".join(message.content for message in messages)
        end = len(before) + len(problem)
        return PromptText(before + problem + after, (len(before), end), add_special_tokens=True)
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    last = users[-1] if users else len(messages) - 1
    text = _render(tokenizer, messages, answer=False)
    marked = list(messages)
    marked[last] = Message(messages[last].role, _MARKER)
    start = _render(tokenizer, marked, answer=False).find(_MARKER)
    problem = messages[last].content.strip()
    found = text.find(problem, max(start, 0))
    if found < 0:
        raise ModelError(
            f"base_model's chat template must show the problem as it is, it does not show "
            f"{problem[:40]!r}; set base_model.prompt_template"
        )
    return PromptText(text, (found, found + len(problem)), add_special_tokens=False)


def render_response(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    response: str,
    prompt: PromptText,
    prompt_template: str | None,
) -> str:
    """Returns what follows the rendered prompt: the response, and the template's end of turn."""
    if prompt_template is not None:
        return response + (tokenizer.eos_token or "")
    conversation = _render(tokenizer, [*messages, Message("assistant", response)], answer=True)
    reply = conversation.removeprefix(prompt.text)
    if reply != conversation and response.strip() in reply:
        return reply.rstrip()
    # Some templates open an answer otherwise than they show a past one, with empty thoughts, or
    # leave a past answer's thoughts out.
    marked = _render(tokenizer, [*messages, Message("assistant", _MARKER)], answer=True)
    return (response + marked.rpartition(_MARKER)[2]).rstrip()


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, answer: bool
) -> str:
    import jinja2

    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=not answer,
            chat_template=_SAME_DATE_EVER + tokenizer.get_chat_template(),
            date_string=_DATE,
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"base_model's chat template refuses the turns ({roles}): {error}; map the corpus's "
            f"columns otherwise, or set base_model.prompt_template"
        ) from error
    return str(text)
