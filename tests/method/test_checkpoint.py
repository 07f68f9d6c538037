"""Fine-tuning against brute force: what carries loss, what is resumed, what is saved."""

import functools
import gc
import math
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from circuitseer_assets.errors import ModelError, SettingsError
from circuitseer_assets.method.checkpoint import fine_tune
from circuitseer_assets.method.trainer import build_trainer
from circuitseer_assets.method.training_rows import count_steps, tokenize_sample, tokenize_samples
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import FineTuning, Message, Sample
from circuitseer_assets.settings import PROJECT_ROOT, Lora, TrainingPlacement, TrainingSettings
from resources.language_model import LanguageModel, ModelIdentity

torch.set_num_threads(1)


@functools.cache
def load_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(PROJECT_ROOT / "models/tiny")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    problems = generate_problems(24, seed=5, split="train")
    return [
        Sample(f"s{i}", f"p{i}", "test", i, (Message("user", p.prompt),), p.response)
        for i, p in enumerate(problems)
    ]


def make_model(seed: int = 0) -> Qwen2ForCausalLM:
    """Returns a small random model as the loader hands it on: frozen and in evaluation mode."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(load_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=load_tokenizer().eos_token_id,
        pad_token_id=load_tokenizer().pad_token_id,
    )
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


SETTINGS = TrainingSettings(batch_size=4, learning_rate=3e-3, max_length=512, max_steps=6)


@pytest.fixture
def train(tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> Callable[..., FineTuning]:
    def run(
        folder: Path,
        *,
        report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
        model: Any = None,
        rows: list[Sample] | None = None,
        **changes: Any,
    ) -> FineTuning:
        return fine_tune(
            model or make_model(),
            tokenizer,
            samples if rows is None else rows,
            SETTINGS.model_copy(update=changes),
            TrainingPlacement(),
            output_dir=folder,
            prompt_template=None,
            report=report,
        )

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def mean_response_loss(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> float:
    """The definition: the mean negative log-likelihood of every response token, one at a time."""
    losses = []
    for sample in samples:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": sample.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        response = tokenizer.encode(sample.response, add_special_tokens=False)
        ids = [*prompt, *response, tokenizer.eos_token_id]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(log_p[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
    return sum(losses) / len(losses)


# loss ---------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_response_and_its_end(
    train: Callable[..., FineTuning],
    tokenizer: PreTrainedTokenizerBase,
    samples: list[Sample],
    tmp_path: Path,
) -> None:
    # One batch of everything: the first step's loss is that of the untouched model.
    done = train(tmp_path, batch_size=len(samples), max_steps=1)
    expected = mean_response_loss(make_model(), tokenizer, samples)
    assert done.losses[0][1] == pytest.approx(expected, abs=1e-5)


def test_no_prompt_position_carries_loss_and_the_end_of_turn_does(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample], tmp_path: Path
) -> None:
    rows = tokenize_samples(tokenizer, samples, SETTINGS, prompt_template=None).rows
    trainer = build_trainer(make_model(), tokenizer, rows, SETTINGS, TrainingPlacement(), tmp_path)
    assert len(trainer.train_dataset) == len(rows)
    for row, example in zip(rows, trainer.train_dataset, strict=True):
        start = row.response_start
        assert tokenizer.decode(row.input_ids[:start]).endswith("<|assistant|>")
        assert example["labels"] == [-100] * start + list(row.input_ids[start:])
        assert example["labels"][-1] == tokenizer.eos_token_id


def test_accumulation_and_recomputed_activations_change_no_weight(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    train(tmp_path / "large", batch_size=8, max_steps=3)
    train(tmp_path / "small", batch_size=2, gradient_accumulation_steps=4, max_steps=3)
    train(tmp_path / "again", batch_size=8, max_steps=3, gradient_checkpointing=True)
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    again = weights(tmp_path / "again")
    for name in large:
        assert torch.allclose(large[name], small[name], atol=1e-4), name
        assert torch.allclose(large[name], again[name], atol=1e-6), name


def test_training_lowers_the_loss(train: Callable[..., FineTuning], tmp_path: Path) -> None:
    done = train(tmp_path, max_steps=30, learning_rate=1e-2)
    assert done.final_loss_nats < 0.8 * done.first_loss_nats


def test_the_first_and_the_last_loss_are_those_of_whole_epochs_or_of_quarters(
    train: Callable[..., FineTuning], tmp_path: Path, samples: list[Sample]
) -> None:
    an_epoch = math.ceil(len(samples) / SETTINGS.batch_size)
    whole = train(tmp_path / "whole", max_steps=None, epochs=3)
    losses = [loss for _, loss in whole.losses]
    assert len(losses) == 3 * an_epoch
    assert whole.first_loss_nats == pytest.approx(fmean(losses[:an_epoch]))
    assert whole.final_loss_nats == pytest.approx(fmean(losses[-an_epoch:]))
    short = train(tmp_path / "short", max_steps=2 * an_epoch - 1)
    losses = [loss for _, loss in short.losses]
    quarter = max(1, len(losses) // 4)
    assert short.first_loss_nats == pytest.approx(fmean(losses[:quarter]))
    assert short.final_loss_nats == pytest.approx(fmean(losses[-quarter:]))


def test_a_loss_that_is_no_number_ends_the_training(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    model = make_model()
    model.model.embed_tokens.weight.data[5:] = float("nan")
    with pytest.raises(ModelError, match="must be a number, got nan at step 1; lower training"):
        train(tmp_path, model=model)
    assert not (tmp_path / "model").exists()


# rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, "Question: {prompt}\nAnswer:"])
def test_rows_have_the_tokens_that_ranking_and_scoring_see(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample], template: str | None
) -> None:
    identity = ModelIdentity("digest", "tokenizer")
    reference = LanguageModel(make_model(), tokenizer, identity, 512, template)
    for sample in samples[:6]:
        row = tokenize_sample(tokenizer, sample, prompt_template=template)
        expected = reference.tokenize(sample.sample_id, sample.messages, sample.response)
        assert row.input_ids == expected.input_ids
        assert row.response_start == expected.response_start
        assert row.input_ids[-1] == tokenizer.eos_token_id


def test_a_tokenizer_without_a_template_needs_one_from_the_settings(
    samples: list[Sample],
) -> None:
    bare = AutoTokenizer.from_pretrained(PROJECT_ROOT / "models/tiny")
    bare.chat_template = None
    with pytest.raises(SettingsError, match="prompt_template must be set for a tokenizer without"):
        tokenize_sample(bare, samples[0], prompt_template=None)


def test_an_end_of_turn_is_added_where_the_template_forgets_it(samples: list[Sample]) -> None:
    forgetful = AutoTokenizer.from_pretrained(PROJECT_ROOT / "models/tiny")
    forgetful.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    row = tokenize_sample(forgetful, samples[0], prompt_template=None)
    assert forgetful.decode(row.input_ids[row.response_start :]) == (
        samples[0].response + forgetful.eos_token
    )


def test_thoughts_are_trained_on_and_the_date_stands_still(samples: list[Sample]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PROJECT_ROOT / "models/tiny")
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}"
        "{{ m['content'].split('</think>')[-1] }}<|eos|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    sample = replace(samples[0], response="<think>2, 3</think>It is 5.")
    row = tokenize_sample(tokenizer, sample, prompt_template=None)
    prompt, response = row.input_ids[: row.response_start], row.input_ids[row.response_start :]
    assert tokenizer.decode(prompt) == f"26 Jul 2024{sample.prompt}<|eos|><|assistant|>"
    assert tokenizer.decode(response) == f"{sample.response}<|eos|>"


def test_rows_too_long_are_dropped_or_cut_and_named(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    whole = tokenize_samples(tokenizer, samples, SETTINGS, prompt_template=None)
    assert not whole.dropped
    assert not whole.truncated
    lengths = {row.sample_id: (row.response_start, len(row.input_ids)) for row in whole.rows}
    limit = sorted(start for start, _ in lengths.values())[len(samples) // 2]
    short = SETTINGS.model_copy(update={"max_length": limit})
    too_long = {name for name, (_, length) in lengths.items() if length > limit}

    dropped = tokenize_samples(tokenizer, samples, short, prompt_template=None)
    assert set(dropped.dropped) == too_long
    assert {row.sample_id for row in dropped.rows} == lengths.keys() - too_long

    cut_settings = short.model_copy(update={"long_rows": "truncate"})
    cut = tokenize_samples(tokenizer, samples, cut_settings, prompt_template=None)
    without_response = {name for name in too_long if lengths[name][0] >= limit}
    assert set(cut.dropped) == without_response
    assert set(cut.truncated) == too_long - without_response
    full = {row.sample_id: row for row in whole.rows}
    for row in cut.rows:
        assert row.input_ids == full[row.sample_id].input_ids[:limit]
        assert row.response_start < len(row.input_ids)


def test_a_subset_of_rows_too_long_is_refused(
    train: Callable[..., FineTuning], samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="got 8 tokens, and all 24 samples are longer; raise"):
        train(tmp_path, max_length=8)
    with pytest.raises(SettingsError, match="the subset holds no sample"):
        train(tmp_path, rows=[])


# steps, seeds, resuming ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_samples", "changes"),
    [
        (24, {"max_steps": None, "epochs": 1.0, "batch_size": 8}),
        (23, {"max_steps": None, "epochs": 1.5, "batch_size": 4, "gradient_accumulation_steps": 4}),
        (5, {"max_steps": 3, "batch_size": 4}),
    ],
)
def test_steps_are_counted_as_the_trainer_takes_them(
    train: Callable[..., FineTuning],
    samples: list[Sample],
    tmp_path: Path,
    num_samples: int,
    changes: dict[str, Any],
) -> None:
    reported: list[int] = []
    done = train(
        tmp_path,
        rows=samples[:num_samples],
        report=lambda step, metrics: reported.append(step),
        **changes,
    )
    settings = SETTINGS.model_copy(update=changes)
    assert done.num_steps == count_steps(num_samples, settings)
    assert reported == list(range(1, done.num_steps + 1)) == [step for step, _ in done.losses]


def test_the_same_seed_gives_the_same_weights(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    first = train(tmp_path / "a")
    second = train(tmp_path / "b")
    train(tmp_path / "c", seed=1)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert first.losses == second.losses
    assert not same_weights(tmp_path / "a", tmp_path / "c")


class Killed(BaseException):
    """Stands in for a kill: nothing may catch it."""


def kill_at(step: int) -> Callable[[int, Mapping[str, float]], None]:
    def report(now: int, metrics: Mapping[str, float]) -> None:
        if now == step:
            raise Killed

    return report


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
def test_a_killed_training_resumes_and_ends_with_the_same_weights(
    train: Callable[..., FineTuning], tmp_path: Path, lora: Lora | None
) -> None:
    whole = train(tmp_path / "whole", save_interval_steps=2, lora=lora)
    with pytest.raises(Killed):
        train(tmp_path / "killed", save_interval_steps=2, lora=lora, report=kill_at(5))
    reported: list[int] = []
    resumed = train(
        tmp_path / "killed",
        save_interval_steps=2,
        lora=lora,
        report=lambda step, metrics: reported.append(step),
    )
    assert reported == [5, 6]
    assert [step for step, _ in resumed.losses] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in resumed.losses] == pytest.approx([loss for _, loss in whole.losses])
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_a_torn_trainer_checkpoint_is_not_resumed_from(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    train(tmp_path / "whole", save_interval_steps=2)
    with pytest.raises(Killed):
        train(tmp_path / "killed", save_interval_steps=2, report=kill_at(5))
    torn = tmp_path / "killed/trainer/checkpoint-4"
    (torn / "whole").unlink()
    (torn / "optimizer.pt").write_bytes(b"torn")
    reported: list[int] = []
    train(
        tmp_path / "killed",
        save_interval_steps=2,
        report=lambda step, metrics: reported.append(step),
    )
    assert reported == [3, 4, 5, 6]
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("max_steps", [1, 5, 6])  # an epoch has six
def test_a_training_killed_while_it_saves_repeats_no_step_and_takes_no_other(
    train: Callable[..., FineTuning],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_steps: int,
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    whole = train(tmp_path / "whole", save_interval_steps=4, max_steps=max_steps)
    with monkeypatch.context() as patch:
        patch.setattr("circuitseer_assets.method.checkpoint._save", killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed", save_interval_steps=4, max_steps=max_steps)
    resumed = train(tmp_path / "killed", save_interval_steps=4, max_steps=max_steps, report=killed)
    assert resumed.losses == whole.losses
    assert resumed.num_steps == max_steps
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_only_the_checkpoint_that_is_resumed_from_is_kept(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    """An older one may be half removed, and no longer be whole though it is marked so."""
    with pytest.raises(Killed):
        train(tmp_path, save_interval_steps=2, report=kill_at(5))
    kept = tmp_path / "trainer"
    assert {path.name for path in kept.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    with pytest.raises(Killed):
        train(tmp_path, save_interval_steps=2, report=kill_at(5))
    assert {path.name for path in kept.glob("checkpoint-*")} == {"checkpoint-4"}


def test_another_training_does_not_resume_from_this_one(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, save_interval_steps=2, report=kill_at(5))
    reported: list[int] = []
    train(
        tmp_path,
        save_interval_steps=2,
        learning_rate=1e-3,
        report=lambda step, metrics: reported.append(step),
    )
    assert reported[0] == 1


def test_a_training_that_had_ended_is_returned_as_it_ended(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    first = train(tmp_path)
    assert train(tmp_path, report=kill_at(1)) == first
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(Killed):
        train(tmp_path, report=kill_at(1))


# what is saved ------------------------------------------------------------------------------------


def test_the_saved_model_is_plain_and_nothing_else_is_left(
    train: Callable[..., FineTuning], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    done = train(tmp_path, save_interval_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine_tuning.json", "model"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert saved.chat_template == tokenizer.chat_template
    assert done.num_samples == 24
    before, after = make_model().state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_adapters_are_merged_into_the_weights_they_adapt(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    train(tmp_path, lora=Lora(rank=2, alpha=4), learning_rate=1e-2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before, after = make_model().state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        change = after[name] - before[name]
        if name.endswith("proj.weight"):
            assert torch.linalg.matrix_rank(change, atol=1e-6) == 2, name
        else:
            assert torch.equal(change, torch.zeros_like(change)), name
    assert not list((tmp_path / "model").glob("adapter*"))


def test_half_precision_is_saved_as_such(train: Callable[..., FineTuning], tmp_path: Path) -> None:
    full = train(tmp_path / "full", max_steps=2)
    half = train(tmp_path / "half", max_steps=2, dtype="bfloat16")
    assert {weight.dtype for weight in weights(tmp_path / "full").values()} == {torch.float32}
    assert {weight.dtype for weight in weights(tmp_path / "half").values()} == {torch.bfloat16}
    assert half.losses[0][1] == pytest.approx(full.losses[0][1], rel=0.01)


def test_the_callers_model_is_not_kept_alive(
    train: Callable[..., FineTuning], tmp_path: Path
) -> None:
    model = make_model()
    alive = weakref.ref(model)
    train(tmp_path, model=model, max_steps=1)
    del model
    gc.collect()
    assert alive() is None
