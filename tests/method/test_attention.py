"""Attention taken and replaced, against eager attention and definitions written out in loops."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    MambaConfig,
    RwkvConfig,
)

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method import attention
from circuitseer_assets.method.attention import (
    AttentionShape,
    StopForward,
    attention_rows,
    ensure_supported,
    intercept_attention,
    num_queries_seeing,
    received_attention,
    uniform_output,
)

from .conftest import (
    CONFIGS,
    HEADS,
    LAYERS,
    SIZES,
    make_model,
    value_hook,
    visible_tokens,
)

T = 13


def batch(padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and mask of one full row and one padded by five on that side."""
    ids = torch.randint(3, 61, (2, T), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2, T, dtype=torch.long)
    if padding == "left":
        mask[1, :5] = 0
    elif padding == "right":
        mask[1, -5:] = 0
    return ids, mask


def calls_of(model, ids, mask) -> list[attention.AttentionCall]:
    calls = []

    def keep(call, attend):
        calls.append(call)
        return attend()

    with torch.inference_mode(), intercept_attention(model, keep):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return calls


def eager_attentions(model, ids, mask) -> list[np.ndarray]:
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False)
    model.set_attn_implementation("sdpa")
    return [layer.double().numpy() for layer in out.attentions]


def test_interception_changes_nothing_and_is_undone(any_model):
    ids, mask = batch("left")
    with torch.inference_mode():
        expected = any_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        with intercept_attention(any_model, lambda call, attend: attend()):
            got = any_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(got, expected)
    assert any_model.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), intercept_attention(any_model, lambda c, a: a()):
        raise ZeroDivisionError
    assert any_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_attention_rows_are_eager_attention(any_model, padding):
    ids, mask = batch(padding)
    expected = eager_attentions(any_model, ids, mask)
    calls = calls_of(any_model, ids, mask)
    assert [call.layer for call in calls] == list(range(LAYERS))
    for call, eager in zip(calls, expected, strict=True):
        got = attention_rows(call, [3, 0], 4, 9).double().numpy()
        real = mask[:, 4:9].numpy().astype(bool)
        for row in range(2):
            wanted = eager[row][[3, 0], 4:9, :9]
            assert np.abs(got[row] - wanted)[:, real[row]].max() < 1e-5


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("without_self", [False, True])
def test_received_attention_is_the_weighted_sum_over_queries(
    any_model, padding, without_self, monkeypatch
):
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", 1)  # blocks of 16 rows and fewer
    ids, mask = batch(padding)
    weights = torch.rand(2, T, generator=torch.Generator().manual_seed(1)) * mask
    for call, eager in zip(
        calls_of(any_model, ids, mask), eager_attentions(any_model, ids, mask), strict=True
    ):
        if without_self:
            eager = eager * (1 - np.eye(T))
        got = received_attention(call, [1, 2], weights, without_self=without_self).numpy()
        wanted = np.einsum("bi,bhij->bhj", weights.double().numpy(), eager[:, [1, 2]])
        assert np.abs(got - wanted).max() < 1e-5


def test_blocks_do_not_matter(llama, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 61, (2, 50), generator=generator)
    weights = torch.rand(2, 50, generator=generator)
    call = calls_of(llama, ids, torch.ones_like(ids))[1]
    whole = received_attention(call, [0, 1, 3], weights)
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", 1)
    assert torch.allclose(received_attention(call, [0, 1, 3], weights), whole, atol=1e-6)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_uniform_output_is_the_mean_of_the_visible_values(any_model, padding):
    ids, mask = batch(padding)
    stored: list[torch.Tensor] = []
    hooks = [value_hook(any_model, layer, stored.append) for layer in range(LAYERS)]
    calls = calls_of(any_model, ids, mask)
    for hook in hooks:
        hook.remove()
    for call, values in zip(calls, stored, strict=True):  # values: (B, T, G, D)
        group_size = HEADS // values.shape[2]
        got = uniform_output(call, [2, 3])
        for row in range(2):
            visible = visible_tokens(any_model, call.layer, mask[row].bool().tolist())
            for i in range(T):
                if not mask[row, i]:
                    continue
                for place, head in enumerate([2, 3]):
                    wanted = values[row, visible[i], head // group_size].mean(0)
                    assert torch.allclose(got[row, i, place], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma3"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_counts_of_visible_tokens_and_seeing_queries(name, padding):
    model = make_model(name)
    ids, mask = batch(padding)
    weights = mask.float()
    for call in calls_of(model, ids, mask):
        num_visible = call.num_visible().expand(2, -1)
        seeing = num_queries_seeing(call, weights).expand(2, -1)
        for row in range(2):
            visible = visible_tokens(model, call.layer, mask[row].bool().tolist())
            for j in range(T):
                if not mask[row, j]:
                    continue
                assert num_visible[row, j] == len(visible[j])
                queries = [i for i in range(T) if mask[row, i] and i != j and j in visible[i]]
                assert seeing[row, j] == len(queries)


def test_stop_forward_ends_the_pass(llama):
    seen = []

    def stop(call, attend):
        seen.append(call.layer)
        if call.layer == 1:
            raise StopForward
        return attend()

    with intercept_attention(llama, stop):
        llama(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
    assert seen == [0, 1]
    assert llama.config._attn_implementation == "sdpa"


def test_supported_models_tell_their_shape(any_model):
    assert ensure_supported(any_model) == AttentionShape(LAYERS, HEADS)


def test_bfloat16_is_supported(llama):
    assert ensure_supported(llama.to(torch.bfloat16)) == AttentionShape(LAYERS, HEADS)


@pytest.mark.parametrize(
    ("config", "implementation", "reason"),
    [
        (
            Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8),
            "eager",
            "'gemma2': its attention is more than SDPA computes",
        ),
        (
            GptOssConfig(**SIZES, num_key_value_heads=2, head_dim=8, num_local_experts=2),
            "eager",
            "'gpt_oss': its attention is more than SDPA computes",
        ),
        (
            CONFIGS["llama-gqa"]().__class__(**SIZES, is_causal=False),
            "sdpa",
            "'llama': layer 0 is not the causal softmax",
        ),
        (
            Gemma3TextConfig(
                **SIZES, num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True
            ),
            "sdpa",
            "layer 0 looks ahead: its attention is not causal",
        ),
    ],
)
def test_other_architectures_are_named_and_refused(config, implementation, reason):
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    with pytest.raises(ModelError, match=reason):
        ensure_supported(model)
    assert model.config._attn_implementation == implementation


def test_an_architecture_without_rotary_embedding_works():
    config = GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    assert ensure_supported(model) == AttentionShape(2, 4)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2),
        RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_without_attention_is_named(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match=f"'{config.model_type}': its configuration names no"):
        ensure_supported(model)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_an_argument_that_changes_the_softmax_is_refused(llama, name):
    module = llama.model.layers[0].self_attn
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs, **{name: torch.ones(1)})
    with pytest.raises(ModelError, match=f"'llama': its attention uses {name}"):
        ensure_supported(llama)


def test_damaged_weights_are_named(llama):
    llama.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="'llama': layer 1 gives NaN or infinity"):
        ensure_supported(llama)
