"""Measures what removing heads costs, restarting each time where the removal first matters.

A model and one probe in, losses out: a clean forward keeps the input of every decoder layer, and an
ablation in layer l runs the layers from l on only, many ablations in one batch, with the loss at
the response's tokens alone. Exact: each layer gets the very arguments that it got in the full
forward. Only one probe's layer inputs are held at a time: L x T x C numbers, 205 MB for a model of
7 B parameters (28 layers, width 3,584) in bfloat16 at 1,024 tokens.

Reference: CircuitSeer, arXiv 2510.18470.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method.attention import (
    AttentionCall,
    decoder_of,
    ensure_supported,
    intercept_attention,
    uniform_output,
)
from circuitseer_assets.records import HeadId, TokenizedText

AblationKind = Literal["uniform", "zero", "mean"]
Ablation = AbstractSet[HeadId]
"""The heads that are ablated together."""

_NORM_NAMES = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
_LOGIT_ROWS = 128
# On a CPU a larger batch leaves the cache and is slower for it.
_CPU_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class DecoderParts:
    """What a restart needs of a model: its layers, and what turns their output into logits."""

    model: PreTrainedModel
    layers: tuple[nn.Module, ...]
    norm: nn.Module
    head: nn.Module
    softcap: float | None
    num_heads: int

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layers)


@dataclass(frozen=True, slots=True, eq=False)
class CleanForward:
    """One probe's forward with nothing ablated: its loss, and what each layer was given."""

    text: TokenizedText
    loss_nats: float
    layer_inputs: tuple[Tensor, ...]  # each (1, T, C)
    layer_kwargs: tuple[dict[str, Any], ...]


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """Returns the parts of `model` that a restart calls.

    Raises:
        ModelError: the architecture is not supported.
    """
    shape = ensure_supported(model)
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    norm = next((getattr(decoder, n) for n in _NORM_NAMES if hasattr(decoder, n)), None)
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if layers is None or norm is None or head is None:
        missing = "layers" if layers is None else "final norm" if norm is None else "output head"
        raise _cannot_restart(model, f"its {missing} cannot be found")
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return DecoderParts(
        model, tuple(layers[: shape.num_layers]), norm, head, softcap, shape.num_heads
    )


@torch.inference_mode()
def run_clean(parts: DecoderParts, text: TokenizedText) -> CleanForward:
    """Returns the probe's loss and the input of every layer; (1, T, C) each."""
    inputs: list[Tensor] = []
    kwargs: list[dict[str, Any]] = []
    outputs: list[Any] = []

    def before(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.append(args[0])
        kwargs.append(keywords)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)

    with contextlib.ExitStack() as hooks:
        for layer in parts.layers:
            handle = layer.register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.callback(parts.layers[-1].register_forward_hook(after).remove)
        hooks.enter_context(intercept_attention(parts.model, lambda _, attend: attend()))
        ids = torch.tensor([text.input_ids], device=parts.model.device)
        decoder_of(parts.model)(input_ids=ids, use_cache=False)
    loss = float(_loss_nats(parts, _hidden_of(outputs[0]), text)[0])
    return CleanForward(text, loss, tuple(inputs), tuple(kwargs))


@torch.inference_mode()
def ablated_loss_nats(
    parts: DecoderParts,
    clean: CleanForward,
    ablations: Sequence[Ablation],
    *,
    kind: AblationKind,
    max_batch_tokens: int,
    mean_outputs: Tensor | None = None,
) -> list[float]:
    """Returns the probe's loss under each ablation, in the order asked, in nats a token.

    Ablations are sorted by their lowest layer and run in batches of at most `max_batch_tokens`
    tokens, each from the lowest layer in its batch; one without heads is a plain restart.

    Args:
        parts: the model's parts.
        clean: the probe's clean forward.
        ablations: sets of heads, each set ablated together.
        kind: what an ablated head puts out.
        max_batch_tokens: how many tokens run at once; at least one ablation does.
        mean_outputs: each head's mean output, (L, H, V), for kind `mean`.
    """
    starts = [min((head.layer for head in heads), default=0) for heads in ablations]
    order = sorted(range(len(ablations)), key=lambda i: starts[i])
    if parts.model.device.type == "cpu":
        max_batch_tokens = min(max_batch_tokens, _CPU_BATCH_TOKENS)
    size = max(1, max_batch_tokens // len(clean.text.input_ids))
    losses = [0.0] * len(ablations)
    for batch in _batches(order, starts, size):
        chosen = [ablations[i] for i in batch]
        interceptor = _replace_heads(chosen, kind, mean_outputs)
        with intercept_attention(parts.model, interceptor):
            hidden = _restart(parts, clean, starts[batch[0]], len(batch))
        for i, loss in zip(batch, _loss_nats(parts, hidden, clean.text).tolist(), strict=True):
            losses[i] = loss
    return losses


def _batches(order: Sequence[int], starts: Sequence[int], size: int) -> Iterator[list[int]]:
    # A batch starts at one layer: an ablation that joined a lower start would run layers for
    # nothing.
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == size or starts[i] != starts[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _replace_heads(
    ablations: Sequence[Ablation], kind: AblationKind, mean_outputs: Tensor | None
) -> Callable[[AttentionCall, Callable[[], Tensor]], Tensor]:
    def intercept(call: AttentionCall, attend: Callable[[], Tensor]) -> Tensor:
        output = attend()  # (B, T, H, V)
        for row, ablation in enumerate(ablations):
            heads = sorted(head.head for head in ablation if head.layer == call.layer)
            if not heads:
                continue
            if kind == "uniform":
                output[row, :, heads] = uniform_output(call.row(row), heads)[0]
            elif kind == "zero":
                output[row, :, heads] = 0
            else:
                if mean_outputs is None:
                    raise ValueError("mean_outputs must be given for ablation 'mean', got None")
                output[row, :, heads] = mean_outputs[call.layer, heads].to(output)
        return output

    return intercept


def _restart(parts: DecoderParts, clean: CleanForward, start: int, batch: int) -> Tensor:
    hidden = clean.layer_inputs[start].expand(batch, -1, -1)  # (B, T, C)
    for layer in range(start, parts.num_layers):
        hidden = _run_layer(parts, layer, hidden, clean.layer_kwargs[layer])
    return hidden


def _run_layer(parts: DecoderParts, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    return _hidden_of(parts.layers[layer](hidden, **_expanded(kwargs, hidden.shape[0])))


def _hidden_of(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _expanded(value: Any, batch: int) -> Any:
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(batch, *value.shape[1:])
    if isinstance(value, dict):
        return {name: _expanded(part, batch) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_expanded(part, batch) for part in value)
    return value


def _loss_nats(parts: DecoderParts, hidden: Tensor, text: TokenizedText) -> Tensor:
    # The token at t is predicted from the state at t - 1; the very first token from nothing.
    start = max(text.response_start, 1)
    targets = torch.tensor(text.input_ids[start:], device=hidden.device)  # (R,)
    states = parts.norm(hidden[:, start - 1 : -1])  # (B, R, C)
    batch, length, width = states.shape
    flat, wanted = states.reshape(-1, width), targets.repeat(batch)
    losses = []
    for first in range(0, batch * length, _LOGIT_ROWS):
        rows = slice(first, first + _LOGIT_ROWS)
        logits = parts.head(flat[rows]).float()
        if parts.softcap is not None:
            logits = (logits / parts.softcap).tanh() * parts.softcap
        losses.append(nn.functional.cross_entropy(logits, wanted[rows], reduction="none"))
    return torch.cat(losses).view(batch, length).double().mean(-1)


@torch.inference_mode()
def mean_head_outputs(parts: DecoderParts, texts: Sequence[TokenizedText]) -> Tensor:
    """Returns each head's mean output over all positions of all `texts`, (L, H, V), float64."""
    totals: dict[int, Tensor] = {}

    def add(call: AttentionCall, attend: Callable[[], Tensor]) -> Tensor:
        output = attend()
        total = output.double().sum((0, 1))
        totals[call.layer] = totals.get(call.layer, torch.zeros_like(total)) + total
        return output

    with intercept_attention(parts.model, add):
        for text in texts:
            ids = torch.tensor([text.input_ids], device=parts.model.device)
            decoder_of(parts.model)(input_ids=ids, use_cache=False)
    num_tokens = sum(len(text.input_ids) for text in texts)
    return torch.stack([totals[layer] for layer in range(parts.num_layers)]) / num_tokens


@torch.inference_mode()
def check_restart(
    parts: DecoderParts, text: TokenizedText, *, kind: AblationKind, mean_outputs: Tensor | None
) -> None:
    """Checks on one probe that a restart is the full forward, with and without an ablation.

    Raises:
        ModelError: it is not; names the architecture and the difference.
    """
    clean = run_clean(parts, text)
    head = frozenset({HeadId(0, 0)})
    plain, ablated = ablated_loss_nats(
        parts, clean, [frozenset(), head], kind=kind, max_batch_tokens=1, mean_outputs=mean_outputs
    )
    expected = _full_loss_nats(parts, text, None)
    interceptor = _replace_heads([head], kind, mean_outputs)
    expected_ablated = _full_loss_nats(parts, text, interceptor)
    tolerance = 1e-4 if parts.model.dtype == torch.float32 else 2e-2
    pairs = ((plain, expected), (clean.loss_nats, expected), (ablated, expected_ablated))
    for got, wanted in pairs:
        if not abs(got - wanted) <= tolerance * max(1.0, abs(wanted)):
            raise _cannot_restart(
                parts.model,
                f"run layer by layer it gives the loss {got:.6f}, as a whole {wanted:.6f}",
            )


def _full_loss_nats(parts: DecoderParts, text: TokenizedText, interceptor: Any) -> float:
    ids = torch.tensor([text.input_ids], device=parts.model.device)
    labels = ids.clone()
    labels[:, : max(text.response_start, 1)] = -100
    with intercept_attention(parts.model, interceptor or (lambda _, attend: attend())):
        return float(parts.model(input_ids=ids, labels=labels, use_cache=False).loss)


def _cannot_restart(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        f"base_model must be a decoder that can be run layer by layer, got architecture "
        f"{model.config.model_type!r}: {reason}; choose another base_model"
    )
