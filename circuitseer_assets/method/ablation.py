"""Measures what removing heads costs, restarting each time where the removal first matters.

A model and one probe in, losses out: a clean forward keeps the inputs of decoder layers, and an
ablation in layer l runs the layers from l on only. Ablations share one walk up the layers: each
joins the batch as another row where its own first layer comes, so that no row runs a layer for
nothing and the upper layers run full batches. The loss is taken at the response's tokens alone.
Exact: each layer gets the very arguments that it got in the full forward.

Only one probe's layer inputs are held at a time, L x T x C numbers: 205 MB for a model of 7 B
parameters (28 layers, width 3,584) in bfloat16 at 1,024 tokens. With fewer layers kept, those in
between are computed again during the walk, at the cost of at most one more clean forward a walk.

Reference: CircuitSeer, arXiv 2510.18470.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method.attention import (
    Attend,
    AttentionCall,
    decoder_of,
    ensure_supported,
    intercept_attention,
    uniform_output,
)
from circuitseer_assets.method.response_loss import next_token_losses
from circuitseer_assets.records import HeadId, TokenizedText

AblationKind = Literal["uniform", "zero", "mean"]
Ablation = AbstractSet[HeadId]
"""The heads that are ablated together."""

_LAYER_NAMES = ("layers", "h")
_NORM_NAMES = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "layer_norm")
# On a CPU a batch with more numbers than this in one hidden state leaves the cache, and is slower.
_CPU_HIDDEN_NUMBERS = 600_000


@dataclass(frozen=True, slots=True, eq=False)
class DecoderParts:
    """What a restart needs of a model: its layers, and the norm between the last and the head."""

    model: PreTrainedModel
    layers: tuple[nn.Module, ...]
    norm: nn.Module
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
    layer_inputs: dict[int, Tensor]  # of the layers kept, the first always: (1, T, C) each
    layer_kwargs: tuple[dict[str, Any], ...]


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """Returns the parts of `model` that a restart calls.

    Raises:
        ModelError: the architecture is not supported.
    """
    shape = ensure_supported(model)
    decoder = decoder_of(model)
    layers = next((getattr(decoder, n) for n in _LAYER_NAMES if hasattr(decoder, n)), None)
    norm = next((getattr(decoder, n) for n in _NORM_NAMES if hasattr(decoder, n)), None)
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if layers is None or norm is None or head is None:
        missing = "layers" if layers is None else "final norm" if norm is None else "output head"
        raise _cannot_restart(model, f"its {missing} cannot be found")
    return DecoderParts(model, tuple(layers[: shape.num_layers]), norm, shape.num_heads)


@torch.inference_mode()
def run_clean(
    parts: DecoderParts, text: TokenizedText, *, max_cached_layers: int | None = None
) -> CleanForward:
    """Returns the probe's loss and the inputs of `max_cached_layers` layers, of all if None."""
    every = math.ceil(parts.num_layers / (max_cached_layers or parts.num_layers))
    inputs: dict[int, Tensor] = {}
    kwargs: list[dict[str, Any]] = []
    outputs: list[Any] = []

    def before(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(kwargs) % every == 0:
            inputs[len(kwargs)] = args[0]
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
    return CleanForward(text, loss, inputs, tuple(kwargs))


@torch.inference_mode()
def ablated_loss_nats(
    parts: DecoderParts,
    clean: CleanForward,
    ablations: Sequence[Ablation],
    *,
    kind: AblationKind,
    max_batch_tokens: int,
    mean_outputs: Tensor | None = None,
    report: Callable[[Sequence[int], Sequence[float]], None] | None = None,
) -> list[float]:
    """Returns the probe's loss under each ablation, in the order asked, in nats a token.

    Args:
        parts: the model's parts.
        clean: the probe's clean forward.
        ablations: sets of heads, each set ablated together; one without heads is a plain restart.
        kind: what an ablated head puts out.
        max_batch_tokens: how many tokens run at once; at least one ablation does.
        mean_outputs: each head's mean output, (L, H, V), for kind `mean`.
        report: called after every walk with the indices of its ablations and their losses.
    """
    starts = [min((head.layer for head in heads), default=0) for heads in ablations]
    order = sorted(range(len(ablations)), key=lambda i: starts[i])
    if parts.model.device.type == "cpu":
        width = parts.model.config.get_text_config().hidden_size
        max_batch_tokens = min(max_batch_tokens, _CPU_HIDDEN_NUMBERS // width)
    size = max(1, max_batch_tokens // len(clean.text.input_ids))
    inputs = _LayerInputs(parts, clean)
    attention = _AblatedAttention(kind, mean_outputs)
    losses = [0.0] * len(ablations)
    with intercept_attention(parts.model, attention):
        for first in range(0, len(order), size):
            walk = order[first : first + size]
            rows = _rows_to_join(inputs, [starts[i] for i in walk])
            attention.ablations = [ablations[i] for i in walk]
            hidden = _walk(parts, clean, rows, attention)
            attention.ablations = ()
            found = _loss_nats(parts, hidden, clean.text).tolist()
            for i, loss in zip(walk, found, strict=True):
                losses[i] = loss
            if report is not None:
                report(walk, found)
    return losses


def _rows_to_join(inputs: "_LayerInputs", starts: Sequence[int]) -> dict[int, Tensor]:
    """Returns the rows that join the walk at each layer, (b, T, C); `starts` ascend."""
    return {
        layer: inputs.of(layer).expand(starts.count(layer), -1, -1)
        for layer in dict.fromkeys(starts)
    }


def _walk(
    parts: DecoderParts,
    clean: CleanForward,
    rows: dict[int, Tensor],
    attention: "_AblatedAttention",
) -> Tensor:
    """Returns the last layer's output of all rows, those that joined first in front, (B, T, C)."""
    hidden = next(iter(rows.values()))[:0]
    for layer in range(min(rows), parts.num_layers):
        attention.num_walking = len(hidden)
        if layer in rows:
            hidden = torch.cat([hidden, rows[layer]])
        hidden = _run_layer(parts, layer, hidden, clean.layer_kwargs[layer])  # (b, T, C)
    return hidden


@dataclass(slots=True, eq=False)
class _LayerInputs:
    """What each layer was given in the clean forward: kept, or computed again from below."""

    parts: DecoderParts
    clean: CleanForward
    layer: int = -1
    hidden: Tensor | None = None

    def of(self, layer: int) -> Tensor:
        """Returns the layer's input, (1, T, C); asking upwards costs least."""
        below = max(kept for kept in self.clean.layer_inputs if kept <= layer)
        if self.hidden is None or not below <= self.layer <= layer:
            self.layer, self.hidden = below, self.clean.layer_inputs[below]
        while self.layer < layer:
            kwargs = self.clean.layer_kwargs[self.layer]
            self.hidden = _run_layer(self.parts, self.layer, self.hidden, kwargs)
            self.layer += 1
        return self.hidden


@dataclass(slots=True, eq=False)
class _AblatedAttention:
    """Computes attention, and replaces the output of the heads that each row's ablation names.

    Rows that join a walk at this layer were all given the same: their attention is computed once.
    Between two walks there are no ablations, and the attention is the model's own.
    """

    kind: AblationKind
    mean_outputs: Tensor | None
    ablations: Sequence[Ablation] = ()
    num_walking: int = 0
    """How many rows of the batch joined below this layer."""

    def __call__(self, call: AttentionCall, attend: Attend) -> Tensor:
        batch, first = call.query.shape[0], self.num_walking
        if self.ablations and batch - first > 1:
            output = attend(first + 1)  # (b, T, H, V)
            joining = output[first:].expand(batch - first, -1, -1, -1)
            output = torch.cat([output[:first], joining])
        else:
            output = attend()
        uniform: Tensor | None = None  # of all heads, for the rows that join
        # The first rows of a walk are there already, the others have yet to join.
        for row, ablation in enumerate(self.ablations[:batch]):
            heads = sorted(head.head for head in ablation if head.layer == call.layer)
            if not heads:
                continue
            if self.kind == "zero":
                output[row, :, heads] = 0
            elif self.kind == "mean":
                if self.mean_outputs is None:
                    raise ValueError("mean_outputs must be given for ablation 'mean', got None")
                output[row, :, heads] = self.mean_outputs[call.layer, heads].to(output)
            elif row < first:
                output[row, :, heads] = uniform_output(call.row(row), heads)[0]
            else:
                if uniform is None:
                    uniform = uniform_output(call.row(first), range(call.num_heads))[0]
                output[row, :, heads] = uniform[:, heads]
        return output


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
    losses = next_token_losses(parts.model, states.reshape(-1, width), targets.repeat(batch))
    return losses.view(batch, length).double().mean(-1)


@torch.inference_mode()
def mean_head_outputs(parts: DecoderParts, texts: Sequence[TokenizedText]) -> Tensor:
    """Returns each head's mean output over all positions of all `texts`, (L, H, V), float64."""
    totals: dict[int, Tensor] = {}

    def add(call: AttentionCall, attend: Attend) -> Tensor:
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
    parts: DecoderParts,
    text: TokenizedText,
    *,
    kind: AblationKind,
    mean_outputs: Tensor | None,
    max_cached_layers: int | None = None,
) -> None:
    """Checks on one probe that a walk gives whole forwards' losses.

    Without an ablation, and with one head of the first, a middle and the last layer each, all in
    one walk.

    Raises:
        ModelError: it does not; names the architecture and the difference.
    """
    clean = run_clean(parts, text, max_cached_layers=max_cached_layers)
    last = parts.num_layers - 1
    tried = [frozenset({HeadId(layer, 0)}) for layer in sorted({0, last // 2, last})]
    ablations: list[Ablation] = [frozenset(), *tried]
    losses = ablated_loss_nats(
        parts,
        clean,
        ablations,
        kind=kind,
        max_batch_tokens=len(ablations) * len(text.input_ids),
        mean_outputs=mean_outputs,
    )
    whole = [
        _full_loss_nats(parts, text, _AblatedAttention(kind, mean_outputs, [ablation]))
        for ablation in ablations
    ]
    tolerance = 1e-4 if parts.model.dtype == torch.float32 else 2e-2
    for got, wanted in zip([clean.loss_nats, *losses], [whole[0], *whole], strict=True):
        if not abs(got - wanted) <= tolerance * max(1.0, abs(wanted)):
            raise _cannot_restart(
                parts.model,
                f"run layer by layer it gives the loss {got:.6f}, as a whole {wanted:.6f}",
            )


def _full_loss_nats(
    parts: DecoderParts, text: TokenizedText, attention: "_AblatedAttention"
) -> float:
    ids = torch.tensor([text.input_ids], device=parts.model.device)
    labels = ids.clone()
    labels[:, : max(text.response_start, 1)] = -100
    with intercept_attention(parts.model, attention):
        return float(parts.model(input_ids=ids, labels=labels, use_cache=False).loss)


def _cannot_restart(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        f"base_model must be a decoder that can be run layer by layer, got architecture "
        f"{model.config.model_type!r}: {reason}; choose another base_model"
    )
