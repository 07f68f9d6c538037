"""What all that answer for lm-eval do alike: prompts to tokens, and tokens to responses."""

from collections.abc import Sequence
from typing import Any


def has_template(tokenizer: Any, prompt_template: str | None) -> bool:
    """Returns whether prompts are rendered before they are tokenised."""
    return prompt_template is not None or tokenizer.chat_template is not None


def fill_template(prompt_template: str, turns: Sequence[dict[str, str]]) -> str:
    """Returns the conversation in the settings' own template."""
    text = "\n\n".join(turn["content"].strip() for turn in turns)
    return prompt_template.replace("{prompt}", text)


def encode_prompt(tokenizer: Any, text: str, prompt_template: str | None) -> list[int]:
    """Returns a prompt's tokens, the same that ranking, scoring and training see."""
    chat = prompt_template is None and tokenizer.chat_template is not None
    ids = list(tokenizer.encode(text, add_special_tokens=not chat))
    # Some tokenizers end every text themselves, even a prompt.
    return ids[:-1] if not chat and ids[-1:] == [tokenizer.eos_token_id] else ids


def end_tokens(tokenizer: Any, configured: int | list[int] | None) -> list[int]:
    """Returns the tokens that end a response: the tokenizer's, and those of the configuration."""
    listed: list[int | None] = [*configured] if isinstance(configured, list) else [configured]
    return sorted({token for token in [*listed, tokenizer.eos_token_id] if token is not None})


def read_response(
    tokenizer: Any, tokens: Sequence[int], ends: Sequence[int], until: Sequence[str]
) -> tuple[str, bool]:
    """Returns a response's text, and whether it was cut off before it ended."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = str(tokenizer.decode(list(tokens[:end]), skip_special_tokens=True))
    stops = [text.find(stop) for stop in until if stop in text]
    if stops:
        return text[: min(stops)], False
    return text, end is None
