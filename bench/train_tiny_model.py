"""Trains the embedded reference model from scratch and writes it as a Hugging Face folder.

Generated word problems (and some plain texts) in; config, safetensors, tokenizer and chat template
out. Progress goes to stderr; the last line of stdout is one JSON object with what was measured.

    python -m bench.train_tiny_model --output models/tiny
"""

import argparse
import logging
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from bench.measure import print_result
from circuitseer_assets.method.word_problems import (
    WordProblem,
    generate_plain_texts,
    generate_problems,
)

UNK, PAD, EOS, USER, ASSISTANT = "<|unk|>", "<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + ASSISTANT
    + "{% generation %}{{ message['content'] }}"
    + EOS
    + "{% endgeneration %}"
    "{% else %}" + USER + "{{ message['content'] }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

PLAIN_SHARE = 0.1
MAX_NEW_TOKENS = 48

logger = logging.getLogger("train_tiny_model")


def build_tokenizer() -> Qwen2Tokenizer:
    """Returns a tokenizer with one token a byte, so one a character of ASCII, and five markers.

    It is Qwen2's own class without merges: `AutoTokenizer` picks that class for the architecture
    whatever the folder says, and bytes leave no text unknown.
    """
    specials = [PAD, EOS, UNK, USER, ASSISTANT]
    bytes_as_text = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda char: (ord(char), char))
    vocabulary = {token: number for number, token in enumerate([*specials, *bytes_as_text])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=UNK,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=1024,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer, *, seed: int) -> Qwen2ForCausalLM:
    """Returns a freshly initialised decoder of about 1.1 M parameters."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def training_records(num_records: int, *, seed: int) -> Iterator[WordProblem]:
    """Returns problems of the training templates with every tenth record a plain text."""
    num_plain = round(num_records * PLAIN_SHARE)
    problems = generate_problems(num_records - num_plain, seed=seed, split="train")
    plain = generate_plain_texts(num_plain, seed=seed)
    every = round(1 / PLAIN_SHARE)
    for index in range(num_records):
        record = next(plain if index % every == every - 1 else problems, None)
        if record is not None:
            yield record


def encode(tokenizer: Qwen2Tokenizer, record: WordProblem) -> tuple[list[int], int]:
    """Returns the token ids of the conversation and the length of its prompt."""
    prompt = tokenizer.encode(f"{USER}{record.prompt}{ASSISTANT}", add_special_tokens=False)
    response = tokenizer.encode(f"{record.response}{EOS}", add_special_tokens=False)
    return prompt + response, len(prompt)


def make_batches(
    rows: Sequence[tuple[list[int], int]], *, batch_size: int, pad_id: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns batches of similar lengths as token ids and prompt lengths, (B, T) and (B,)."""
    window = batch_size * 32
    for begin in range(0, len(rows), window):
        bucket = sorted(rows[begin : begin + window], key=lambda row: len(row[0]))
        chunks = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            longest = max(len(ids) for ids, _ in chunk)
            yield (
                torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in chunk]),
                torch.tensor([prompt_length for _, prompt_length in chunk]),
            )


def batch_loss(
    model: Qwen2ForCausalLM,
    ids: Tensor,
    prompt_lengths: Tensor,
    *,
    pad_id: int,
    prompt_weight: float,
) -> tuple[Tensor, Tensor]:
    """Returns the loss to train on and the mean loss of the response, in nats a token.

    Padding is on the right and attention is causal, so no mask is needed.
    """
    logits = model(input_ids=ids[:, :-1]).logits  # (B, T - 1, V)
    targets = ids[:, 1:]  # (B, T - 1)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    ).view_as(targets)
    positions = torch.arange(1, ids.shape[1])
    in_response = (positions >= prompt_lengths[:, None]) & (targets != pad_id)
    in_prompt = positions < prompt_lengths[:, None]
    response_loss = (losses * in_response).sum() / in_response.sum()
    prompt_loss = (losses * in_prompt).sum() / in_prompt.sum()
    return response_loss + prompt_weight * prompt_loss, response_loss.detach()


def build_optimizers(
    model: Qwen2ForCausalLM, *, learning_rate: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Returns Muon for the layers' matrices and AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return (
        torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def learning_rate_factor(step: int, *, num_steps: int, warmup: int) -> float:
    """Returns the share of the peak learning rate: linear warm-up, then cosine to 5 %."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


@torch.inference_mode()
def greedy_answers(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    problems: Sequence[WordProblem],
    *,
    batch_size: int = 100,
) -> list[str]:
    """Returns the greedy response to each problem, without the end marker."""
    model.eval()
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].prompt))
    responses = [""] * len(problems)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        chats = [f"{USER}{problems[i].prompt}{ASSISTANT}" for i in indices]
        inputs = tokenizer(
            chats, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        texts = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for index, text in zip(indices, texts, strict=True):
            responses[index] = text
    model.train()
    return responses


def pass_at_1(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, problems: Sequence[WordProblem]
) -> dict[str, float]:
    """Returns the share of right final answers: `all`, and per number of steps."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for problem, response in zip(problems, greedy_answers(model, tokenizer, problems), strict=True):
        correct = response.rpartition("#### ")[2] == problem.answer
        outcomes["all"].append(correct)
        outcomes[f"{problem.num_steps}_steps"].append(correct)
    return {key: sum(rights) / len(rights) for key, rights in sorted(outcomes.items())}


def train(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, arguments: argparse.Namespace
) -> float:
    """Trains `model` in place and returns the mean response loss of the last 50 steps, in nats."""
    records = training_records(arguments.steps * arguments.batch_size, seed=arguments.seed)
    rows = [encode(tokenizer, record) for record in records]
    batches = make_batches(
        rows,
        batch_size=arguments.batch_size,
        pad_id=tokenizer.pad_token_id,
        rng=random.Random(arguments.seed),
    )
    optimizers = build_optimizers(model, learning_rate=arguments.learning_rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, num_steps=arguments.steps, warmup=50),
        )
        for optimizer in optimizers
    ]
    progress_problems = list(generate_problems(120, seed=arguments.seed + 1, split="train"))
    model.train()
    losses: list[float] = []
    started = time.perf_counter()
    for step, (ids, prompt_lengths) in enumerate(batches, start=1):
        loss, response_loss = batch_loss(
            model,
            ids,
            prompt_lengths,
            pad_id=tokenizer.pad_token_id,
            prompt_weight=arguments.prompt_weight,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(response_loss))
        if step % 50 == 0:
            logger.info(
                "step %d/%d, response loss %.4f nats, %.0f s",
                *(step, arguments.steps, sum(losses[-50:]) / 50, time.perf_counter() - started),
            )
        if step % 250 == 0 and step < arguments.steps:
            logger.info("training templates: %s", pass_at_1(model, tokenizer, progress_problems))
            save(model, tokenizer, arguments.output)
    return sum(losses[-50:]) / len(losses[-50:])


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Writes the model, its tokenizer and its generation settings to `folder`."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=840, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=32, help="conversations a step")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--prompt-weight", type=float, default=0.1, help="weight of prompt loss")
    parser.add_argument("--seed", type=int, default=20251018, help="of weights, data and order")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--evaluation-problems", type=int, default=1000)
    return parser.parse_args()


def main() -> None:
    """Trains, evaluates, saves and prints one JSON object."""
    arguments = parse_arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    started, cpu_started = time.perf_counter(), time.process_time()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=arguments.seed)
    final_loss = train(model, tokenizer, arguments)
    training_seconds = time.perf_counter() - started
    training_cpu_seconds = time.process_time() - cpu_started
    save(model, tokenizer, arguments.output)
    num_problems, seed = arguments.evaluation_problems, arguments.seed + 2
    held_out = list(generate_problems(num_problems, seed=seed, split="held_out"))
    seen = list(generate_problems(num_problems, seed=seed, split="train"))
    result = {
        "held_out_pass_at_1": pass_at_1(model, tokenizer, held_out),
        "training_templates_pass_at_1": pass_at_1(model, tokenizer, seen),
        "evaluation_problems": arguments.evaluation_problems,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (arguments.output / "model.safetensors").stat().st_size,
        "response_loss_nats": final_loss,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "prompt_weight": arguments.prompt_weight,
        "seed": arguments.seed,
        "training_seconds": round(training_seconds, 1),
        "training_cpu_seconds": round(training_cpu_seconds, 1),
        "threads": arguments.threads,
    }
    print_result(
        result,
        started=started,
        libraries=("torch", "transformers", "tokenizers", "safetensors"),
    )


if __name__ == "__main__":
    main()
