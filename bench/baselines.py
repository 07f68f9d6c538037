"""How others ablate one head: a whole forward each, by Hugging Face hooks and by TransformerLens.

Written from the definition and by none of the project's own code, so that they check it as well.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from circuitseer_assets.records import HeadId, TokenizedText
from resources.language_model import LanguageModel

AblatedLoss = Callable[[TokenizedText, HeadId], float]
"""Returns the loss of a probe's response with one head ablated, in nats a token."""


def hugging_face_loss(model: LanguageModel) -> AblatedLoss:
    """Returns a function that runs one whole Hugging Face forward, with SDPA and no cache."""
    network: Any = model.model
    config = network.config
    size = config.num_attention_heads // config.num_key_value_heads

    @torch.inference_mode()
    def loss(text: TokenizedText, head: HeadId) -> float:
        attention = network.model.layers[head.layer].self_attn
        values: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            values.append(output.unflatten(-1, (config.num_key_value_heads, -1)))  # (1, T, G, D)

        def write_over(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            heads = args[0].unflatten(-1, (config.num_attention_heads, -1)).clone()  # (1, T, H, D)
            heads[:, :, head.head] = _running_mean(values[0][:, :, head.head // size])
            return (heads.flatten(2),)

        with contextlib.ExitStack() as hooks:
            hooks.callback(attention.v_proj.register_forward_hook(keep).remove)
            hooks.callback(attention.o_proj.register_forward_pre_hook(write_over).remove)
            logits = network(input_ids=torch.tensor([text.input_ids]), use_cache=False).logits
        return _response_loss(logits[0], text)

    return loss


def transformer_lens_loss(model: LanguageModel, folder: str) -> AblatedLoss:
    """Returns a function that runs TransformerLens with two hooks, as its tutorials ablate a head.

    Args:
        model: the model; TransformerLens wraps it in place, so it is not to be used otherwise.
        folder: a name for the model.
    """
    from transformer_lens.model_bridge import TransformerBridge

    config: Any = model.model.config
    groups, num_heads = config.num_key_value_heads, config.num_attention_heads
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=model.model, tokenizer=model.tokenizer, device="cpu"
    )

    @torch.inference_mode()
    def loss(text: TokenizedText, head: HeadId) -> float:
        values: list[Tensor] = []

        def keep(value: Tensor, hook: Any) -> None:
            values.append(value.reshape(1, value.shape[1], groups, -1))

        def write_over(output: Tensor, hook: Any) -> Tensor:
            heads = output.reshape(1, output.shape[1], num_heads, -1).clone()
            own = values[0][:, :, head.head * groups // num_heads]
            heads[:, :, head.head] = _running_mean(own)
            return heads.reshape(output.shape)

        place = f"blocks.{head.layer}.attn"
        logits = bridge.run_with_hooks(
            torch.tensor([text.input_ids]),
            return_type="logits",
            fwd_hooks=[(f"{place}.hook_v", keep), (f"{place}.hook_z", write_over)],
        )
        return _response_loss(logits[0], text)

    return loss


def _running_mean(values: Tensor) -> Tensor:
    counts = torch.arange(1, values.shape[1] + 1, device=values.device)
    return values.cumsum(1) / counts[None, :, None]


def _response_loss(logits: Tensor, text: TokenizedText) -> float:
    targets = torch.tensor(text.input_ids[text.response_start :])
    predicted = logits[text.response_start - 1 : -1].float()
    return float(nn.functional.cross_entropy(predicted, targets))
