"""Tiny random decoders of every architecture the method is tested on, and what else tests share."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from circuitseer_assets.records import HeadId, HeadImportance, TokenizedText

VOCABULARY = 61
LAYERS, HEADS, WINDOW = 3, 4, 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-mha": lambda: LlamaConfig(**SIZES, num_key_value_heads=4),
    "llama-gqa": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2-gqa": lambda: Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3-mqa": lambda: Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=12),
    "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=WINDOW),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": lambda: Phi3Config(**SIZES, num_key_value_heads=2),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES),
}


def make_model(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Returns a small random model whose attention and biases are far from trivial."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation="sdpa", dtype=torch.float32
    )
    for parameter in model.parameters():
        scale = 0.3 if parameter.dim() > 1 else 0.1
        parameter.data += torch.randn_like(parameter) * scale
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=list(CONFIGS))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama-gqa")


def make_text(
    name: str, num_prompt: int, num_response: int = 0, *, seed: int | None = None
) -> TokenizedText:
    """Returns a random text; its content leaves out two tokens in front and one behind."""
    generator = torch.Generator().manual_seed(hash_of(name) if seed is None else seed)
    ids = torch.randint(3, VOCABULARY, (num_prompt + num_response,), generator=generator)
    return TokenizedText(name, tuple(ids.tolist()), (2, num_prompt - 1), num_prompt)


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31


def layer_window(model: PreTrainedModel, layer: int) -> float:
    """Returns how far back a layer's queries see."""
    window = getattr(model.config, "sliding_window", None)
    types = getattr(model.config, "layer_types", None)
    if window is None or (types is not None and types[layer] != "sliding_attention"):
        return math.inf
    return window


def visible_tokens(model: PreTrainedModel, layer: int, is_token: list[bool]) -> list[list[int]]:
    """Returns for each position those it may look at, from the definition."""
    window = layer_window(model, layer)
    return [
        [j for j in range(i + 1) if is_token[j] and i - j < window] for i in range(len(is_token))
    ]


def attention_module(model: PreTrainedModel, layer: int) -> torch.nn.Module:
    block = model.get_decoder().layers[layer]
    return block.attention if hasattr(block, "attention") else block.self_attn


def output_projection(model: PreTrainedModel, layer: int) -> torch.nn.Module:
    module = attention_module(model, layer)
    return module.dense if hasattr(module, "dense") else module.o_proj


def value_hook(model: PreTrainedModel, layer: int, store: Callable[[Tensor], None]):
    """Hooks the projection that makes the values; `store` gets them as (B, T, G, D)."""
    module, config = attention_module(model, layer), model.config
    if hasattr(module, "v_proj"):
        dim = module.head_dim
        return module.v_proj.register_forward_hook(
            lambda _, args, out: store(out.unflatten(-1, (-1, dim)))
        )
    if hasattr(module, "qkv_proj"):
        groups, dim = config.num_key_value_heads, module.head_dim
        return module.qkv_proj.register_forward_hook(
            lambda _, args, out: store(out[..., -groups * dim :].unflatten(-1, (groups, dim)))
        )
    return module.query_key_value.register_forward_hook(
        lambda _, args, out: store(out.unflatten(-1, (HEADS, 3, -1))[..., 2, :])
    )


def head(layer, number, delta, *, chosen=False, p_holm=None, **evidence) -> HeadImportance:
    """Returns one head's importance; its interval is 0.02 nats to either side unless given."""
    return HeadImportance(
        head=HeadId(layer, number),
        delta_loss_nats=delta,
        stderr=0.01,
        ci_low=evidence.pop("ci_low", delta - 0.02),
        ci_high=evidence.pop("ci_high", delta + 0.02),
        num_probes=8,
        measured_on_all=True,
        is_reasoning_head=chosen,
        p_holm=p_holm,
        **evidence,
    )
