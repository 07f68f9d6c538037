"""The embedded reference model: what is in its folder, how it reads a chat, what it answers."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from circuitseer_assets.method.word_problems import generate_plain_texts, generate_problems

FOLDER = Path(__file__).parents[2] / "models" / "tiny"
SPECIALS = ("<|pad|>", "<|eos|>", "<|unk|>", "<|user|>", "<|assistant|>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def test_weights_are_safetensors_of_at_most_five_megabytes() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 5_000_000
    assert not [*FOLDER.glob("*.bin"), *FOLDER.glob("*.pt")]
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert all(torch.isfinite(weights.get_tensor(key)).all() for key in weights.keys())  # noqa: SIM118


def test_architecture_is_qwen2_with_grouped_query_attention() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["num_hidden_layers"], config["num_attention_heads"]) == (6, 8)
    assert config["num_key_value_heads"] == 2
    assert config["max_position_embeddings"] >= 512


def test_every_ascii_character_is_one_token_and_any_text_comes_back(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ascii_text = "\n" + "".join(map(chr, range(32, 127)))
    assert len(tokenizer.encode(ascii_text)) == len(ascii_text)
    for text in (ascii_text, "a  b\n\n c\t", "caf\u00e9 \u2212 \u4e09 \U0001f34e", " x ", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_and_come_back(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.encode("".join(SPECIALS)) == [0, 1, 2, 3, 4]
    assert tokenizer.decode([0, 1, 2, 3, 4]) == "".join(SPECIALS)
    assert tokenizer.decode([3, 4, 1], skip_special_tokens=True) == ""
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|eos|>")


@pytest.mark.parametrize("num_turns", [1, 2])
def test_the_prompt_is_a_strict_prefix_of_the_conversation(
    tokenizer: PreTrainedTokenizerBase, num_turns: int
) -> None:
    turns = [
        {"role": "user", "content": "Ada has 3 pens."},
        {"role": "assistant", "content": "3+4=7;#### 7"},
    ] * num_turns
    prompt = tokenizer.apply_chat_template(
        turns[:-1], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    encoded = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    whole, mask = encoded["input_ids"], encoded["assistant_masks"]
    assert whole[: len(prompt)] == prompt
    assert len(whole) > len(prompt)
    assert tokenizer.decode(whole[len(prompt) :]) == "3+4=7;#### 7<|eos|>"
    assert mask[len(prompt) :] == [1] * (len(whole) - len(prompt))
    assert sum(mask) == num_turns * (len(whole) - len(prompt))


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list:
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(**inputs)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])


def test_answers_are_well_formed_and_a_fair_share_is_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    problems = list(generate_problems(60, seed=99, split="held_out"))
    texts = _answer(model, tokenizer, [problem.prompt for problem in problems])
    formed = [re.match(r"(?:\d+[-+*/]\d+=\d+;)+#### (\d+)<\|eos\|>", text) for text in texts]
    assert sum(match is not None for match in formed) >= 55
    right = sum(
        match is not None and match[1] == problem.answer
        for match, problem in zip(formed, problems, strict=True)
    )
    assert 0.25 <= right / len(problems) <= 0.85


def test_padding_does_not_change_an_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    short, long = sorted(
        (problem.prompt for problem in generate_problems(20, seed=98, split="train")), key=len
    )[::19]
    alone = _answer(model, tokenizer, [short])[0]
    assert _answer(model, tokenizer, [short, long])[0].removesuffix("<|pad|>").startswith(alone)


def test_the_model_reads_the_problem(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The loss of a response is far lower under its own prompt than under another's."""

    def loss(prompt: str, response: str) -> float:
        head = tokenizer.encode(f"<|user|>{prompt}<|assistant|>")
        ids = torch.tensor([head + tokenizer.encode(f"{response}<|eos|>")])
        labels = ids.clone()
        labels[:, : len(head)] = -100
        with torch.inference_mode():
            return float(model(input_ids=ids, labels=labels).loss)

    problems = list(generate_problems(20, seed=97, split="held_out"))
    own = [loss(problem.prompt, problem.response) for problem in problems]
    swapped = [
        loss(other.prompt, problem.response)
        for problem, other in zip(problems, problems[1:] + problems[:1], strict=True)
    ]
    assert sum(own) < 0.5 * sum(swapped)
    plain = [loss(text.prompt, text.response) for text in generate_plain_texts(20, seed=97)]
    assert sum(plain) / 20 < 1.0
