"""The estimate's sizes against a real model's, its tokens and operations against counted ones."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from circuitseer_assets.method.estimate import CorpusShape, Gpu, ModelShape, estimate_run
from circuitseer_assets.settings import PROJECT_ROOT, load_settings, parse_settings

SHAPE = ModelShape(4, 64, 8, 2, 8, 160, 101, is_tied=False)
GPU = Gpu("one", 1e12, 1e11, 1e9)


def make_model(*, is_tied: bool) -> torch.nn.Module:
    config = LlamaConfig(
        num_hidden_layers=4,
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=160,
        vocab_size=101,
        tie_word_embeddings=is_tied,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_weights_are_those_of_a_real_model(is_tied: bool) -> None:
    shape = ModelShape(4, 64, 8, 2, 8, 160, 101, is_tied=is_tied)
    counted = sum(weight.numel() for weight in make_model(is_tied=is_tied).parameters())
    norms = (2 * 4 + 1) * 64
    assert shape.num_parameters == counted - norms


def test_the_operations_of_a_forward_are_the_counted_ones() -> None:
    ids = torch.zeros(3, 50, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        make_model(is_tied=False)(input_ids=ids)
    # Eager attention looks at all pairs of tokens, a causal kernel at half of them.
    said = SHAPE.flops(150, 2 * 50)
    assert said == pytest.approx(counter.get_total_flops(), rel=0.02)


def corpus(num_rows: int = 10_000, length: int = 100) -> CorpusShape:
    return CorpusShape(num_rows, ((length, length),), 3.0)


def stages(preset: str = "tiny", shape: CorpusShape | None = None, **changes):
    settings = load_settings(PROJECT_ROOT / f"presets/{preset}.yaml")
    values = settings.model_dump(mode="json")
    for name, slice_ in changes.items():
        values[name] = {**values[name], **slice_}
    changed = parse_settings(values, origin="a test")
    return {
        stage.stage: stage
        for stage in estimate_run(changed, SHAPE, shape or corpus(), [], GPU).stages
    }


def test_twice_the_rows_are_twice_the_scoring_and_no_more_ranking() -> None:
    once, twice = stages(), stages(shape=corpus(20_096))
    assert twice["sample_scores"].num_tokens == pytest.approx(
        2 * once["sample_scores"].num_tokens, rel=0.01
    )
    assert twice["head_ranking"] == once["head_ranking"]


def test_an_exhaustive_ranking_ablates_every_head_on_every_probe() -> None:
    few = {"num_ranking": 16, "num_confirmation": 2, "num_control": 0}
    ranking = {"fraction": 0.05}
    race = stages(probe_set=few, head_ranking=ranking)["head_ranking"]
    exhaustive = {**ranking, "exhaustive": True}
    all_heads = stages(probe_set=few, head_ranking=exhaustive)["head_ranking"]
    assert race.num_tokens < all_heads.num_tokens
    chosen, restart = 2, 5 / 8  # of 32 heads; of 4 layers 4, 3, 2 or 1 are run
    ablations = (16 * 32 + 2 * chosen) * restart + 16 + 2 * (2 + 19)
    assert all_heads.num_tokens == pytest.approx(ablations * 200)


def test_training_counts_steps_where_they_are_set_and_epochs_otherwise() -> None:
    budget = {"budget": {"samples": 1000}}
    training = {"epochs": 2.0, "max_steps": None, "batch_size": 10, "max_length": 512}
    epochs = stages(selection=budget, training=training)["checkpoint"]
    assert epochs.num_tokens == pytest.approx(2 * 1000 * 200, rel=0.1)
    steps = stages(selection=budget, training={**training, "max_steps": 100})["checkpoint"]
    assert steps.num_tokens == pytest.approx(100 * 10 * 200, rel=0.1)


def test_adapters_and_recomputation_trade_memory_for_operations() -> None:
    budget = {"budget": {"samples": 1000}}
    full = stages(selection=budget)["checkpoint"]
    lora = stages(selection=budget, training={"lora": {"rank": 2}})["checkpoint"]
    again = stages(selection=budget, training={"gradient_checkpointing": True})["checkpoint"]
    assert (lora.memory_bytes, lora.flops) < (full.memory_bytes, full.flops)
    assert again.memory_bytes < full.memory_bytes
    assert again.flops == pytest.approx(full.flops * 4 / 3)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        # 176,768 weights of 16 bytes with gradient and moments; a token's activations are
        # 4 layers * (10 * 64 + 3 * 160) * 4 bytes + 2 * 101 logits of 4 bytes.
        ({"num_processes": 1}, 176_768 * 16 + 8 * 200 * 18_728),
        # Four share the 8 rows of a step; each holds the gradients twice.
        ({"num_processes": 4}, 176_768 * 20 + 2 * 200 * 18_728),
        # A quarter each, and whole at a time one layer's 40,960 and the tables' 2 * 101 * 64.
        (
            {"num_processes": 4, "sharding": "fsdp"},
            176_768 * 4 + (40_960 + 12_928) * 4 + 2 * 200 * 18_728,
        ),
    ],
)
def test_the_memory_of_a_gpu_is_its_share_of_the_batch_and_of_the_shards(
    placement: dict[str, Any], expected: float
) -> None:
    training = {"batch_size": 8, "lora": None, "dtype": "float32", "gradient_checkpointing": False}
    made = stages(training=training, execution={"training": placement})["checkpoint"]
    assert made.memory_bytes == expected
    alone = stages(training=training)["checkpoint"]
    assert made.gpu_hours == alone.gpu_hours


def test_full_training_of_the_articles_model_holds_what_its_preset_says() -> None:
    shape = ModelShape(28, 3584, 28, 4, 128, 18944, 152064, is_tied=False)
    assert shape.num_parameters == pytest.approx(7.62e9, rel=0.002)
    assert 16 * shape.num_parameters == pytest.approx(122e9, rel=0.01)


def test_samples_that_are_too_long_are_not_counted() -> None:
    mixed = CorpusShape(10_000, ((100, 100), (100, 9000)), 3.0)
    budget = {"budget": {"samples": 1000}}
    training = {"max_steps": None, "epochs": 1.0, "max_length": 512, "long_rows": "drop"}
    dropped = stages(shape=mixed, selection=budget, training=training)["checkpoint"]
    assert dropped.num_tokens == pytest.approx(500 * 200, rel=0.1)
    cut = stages(shape=mixed, selection=budget, training={**training, "long_rows": "truncate"})
    assert cut["checkpoint"].num_tokens == pytest.approx(500 * 200 + 500 * 512, rel=0.1)
