"""Measures what removing heads costs, restarting each time where the removal first matters.

A model and one probe in, losses out. Ablations share one walk up the layers: each joins the batch
as another row where its own first layer comes, so that no row runs a layer for nothing and the
upper layers run full batches. The first walk is the model's own forward with nothing ablated, which
other rows join; ablations that it has no room for restart later from the inputs of layers that it
kept. The loss is taken at the response's tokens alone. Exact: each layer gets the very arguments
that it gets in a full forward.

Only one probe's layer inputs are held at a time, L x T x C numbers: 205 MB for a model of 7 B
parameters (28 layers, width 3,584) in bfloat16 at 1,024 tokens. With fewer layers kept, those in
between are computed again during the walk, at the cost of at most one more clean forward a walk.

Reference: CircuitSeer, arXiv 2510.18470.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method.attention import (
    Attend,
    AttentionCall,
    StopForward,
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


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """Returns the parts of `model` that a restart calls.

    Raises:
        ModelError: the architecture is not supported.
    """
    layers = decoder_layers(model)
    decoder = decoder_of(model)
    norm = next((getattr(decoder, n) for n in _NORM_NAMES if hasattr(decoder, n)), None)
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if norm is None or head is None:
        missing = "final norm" if norm is None else "output head"
        raise _cannot_restart(model, f"its {missing} cannot be found")
    return DecoderParts(model, layers, norm, ensure_supported(model).num_heads)


def decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Returns the model's decoder layers, the lowest first.

    Raises:
        ModelError: the architecture is not supported.
    """
    shape = ensure_supported(model)
    decoder = decoder_of(model)
    layers = next((getattr(decoder, n) for n in _LAYER_NAMES if hasattr(decoder, n)), None)
    if layers is None:
        raise _cannot_restart(model, "its layers cannot be found")
    return tuple(layers[: shape.num_layers])


Report = Callable[[float, Sequence[int], Sequence[float]], None]
"""Takes the loss with nothing ablated, and a walk's ablations with their losses."""


@torch.inference_mode()
def measure_losses(
    parts: DecoderParts,
    text: TokenizedText,
    ablations: Sequence[Ablation],
    *,
    kind: AblationKind,
    max_batch_tokens: int,
    max_cached_layers: int | None = None,
    mean_outputs: Tensor | None = None,
    report: Report | None = None,
) -> tuple[float, list[float]]:
    """Returns the probe's loss with nothing ablated, and that of each ablation, in nats a token.

    Args:
        parts: the model's parts.
        text: the probe.
        ablations: sets of heads, each set ablated together; one without heads changes nothing.
        kind: what an ablated head puts out.
        max_batch_tokens: how many tokens run at once; at least one row does.
        max_cached_layers: how many layers' inputs are kept for later walks; all if None.
        mean_outputs: each head's mean output, (L, H, V), for kind `mean`.
        report: called after every walk.
    """
    starts = [min((head.layer for head in heads), default=0) for heads in ablations]
    order = sorted(range(len(ablations)), key=lambda i: starts[i])
    if parts.model.device.type == "cpu":
        width = parts.model.config.get_text_config().hidden_size
        max_batch_tokens = min(max_batch_tokens, _CPU_HIDDEN_NUMBERS // width)
    size = max(1, max_batch_tokens // len(text.input_ids))
    walks = [order[: size - 1]]  # one row of the first is the clean forward
    walks += [order[first : first + size] for first in range(size - 1, len(order), size)]
    attention = _AblatedAttention(kind, mean_outputs)
    inputs = _LayerInputs(parts, _layers_to_keep(parts, starts, walks[1:], max_cached_layers))
    losses = [0.0] * len(ablations)
    clean_loss = 0.0
    with intercept_attention(parts.model, attention):
        for number, walk in enumerate(walks):
            joining = Counter(starts[i] for i in walk)
            if number == 0:
                attention.ablations = [frozenset(), *(ablations[i] for i in walk)]
                hidden = _walk_in_a_forward(inputs, text, joining, attention)
            else:
                rows = {layer: inputs.of(layer).expand(n, -1, -1) for layer, n in joining.items()}
                attention.ablations = [ablations[i] for i in walk]
                hidden = _walk(inputs, rows, attention)
            attention.ablations = ()
            found = _loss_nats(parts, hidden, text).tolist()
            if number == 0:
                clean_loss, *found = found
            for i, loss in zip(walk, found, strict=True):
                losses[i] = loss
            if report is not None:
                report(clean_loss, walk, found)
    return clean_loss, losses


def _layers_to_keep(
    parts: DecoderParts,
    starts: Sequence[int],
    walks: Sequence[Sequence[int]],
    max_cached_layers: int | None,
) -> range:
    """Returns the layers whose inputs these walks need, or from which they can be computed."""
    if not walks:
        return range(0)
    lowest = starts[walks[0][0]]
    every = math.ceil(parts.num_layers / (max_cached_layers or parts.num_layers))
    return range(lowest, parts.num_layers, every)


def _walk_in_a_forward(
    inputs: "_LayerInputs",
    text: TokenizedText,
    joining: Mapping[int, int],
    attention: "_AblatedAttention",
) -> Tensor:
    """Returns the last layer's output, (1 + B, T, C): of the clean forward, and of rows joining it.

    `joining` tells how many rows join at a layer. What each layer is given goes into `inputs`.
    """
    outputs: list[Any] = []

    def before(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        hidden: Tensor = args[0]
        layer = len(inputs.kwargs)
        inputs.keep(layer, hidden[:1], keywords)
        attention.num_walking = len(hidden)
        hidden = torch.cat([hidden, hidden[:1].expand(joining.get(layer, 0), -1, -1)])
        return (hidden, *args[1:]), _expanded(keywords, len(hidden))

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)
        raise StopForward  # some models' next step insists on as many rows as were put in

    layers, model = inputs.parts.layers, inputs.parts.model
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            handle = layer.register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.callback(layers[-1].register_forward_hook(after).remove)
        hooks.enter_context(intercept_attention(model, attention))
        ids = torch.tensor([text.input_ids], device=model.device)
        decoder_of(model)(input_ids=ids, use_cache=False)
    return _hidden_of(outputs[0])


def _walk(
    inputs: "_LayerInputs", rows: Mapping[int, Tensor], attention: "_AblatedAttention"
) -> Tensor:
    """Returns the last layer's output of all rows, those that joined first in front, (B, T, C).

    `rows` are those that join at each layer, (b, T, C), in ascending order.
    """
    hidden = next(iter(rows.values()))[:0]
    for layer in range(min(rows), inputs.parts.num_layers):
        attention.num_walking = len(hidden)
        if layer in rows:
            hidden = torch.cat([hidden, rows[layer]])
        hidden = inputs.run_layer(layer, hidden)  # (b, T, C)
    return hidden


@dataclass(slots=True, eq=False)
class _LayerInputs:
    """What each layer is given in the clean forward: kept, or computed again from below."""

    parts: DecoderParts
    kept_layers: range
    kwargs: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)  # (1, T, C) each
    layer: int = -1
    hidden: Tensor | None = None

    def keep(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Stores what the next layer was given."""
        self.kwargs.append(kwargs)
        if layer in self.kept_layers:
            self.kept[layer] = hidden.clone()

    def of(self, layer: int) -> Tensor:
        """Returns the layer's input, (1, T, C); asking upwards costs least."""
        below = max(kept for kept in self.kept if kept <= layer)
        if self.hidden is None or not below <= self.layer <= layer:
            self.layer, self.hidden = below, self.kept[below]
        while self.layer < layer:
            self.hidden = self.run_layer(self.layer, self.hidden)
            self.layer += 1
        return self.hidden

    def run_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Returns the layer's output for rows of `hidden`, (b, T, C)."""
        kwargs = _expanded(self.kwargs[layer], len(hidden))
        return _hidden_of(self.parts.layers[layer](hidden, **kwargs))


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

    Without an ablation, and with one head of the first, a middle and the last layer each: some in
    the first walk, some restarted.

    Raises:
        ModelError: it does not; names the architecture and the difference.
    """
    last = parts.num_layers - 1
    tried = [frozenset({HeadId(layer, 0)}) for layer in sorted({0, last // 2, last})]
    ablations: list[Ablation] = [frozenset(), *tried]
    clean_loss, losses = measure_losses(
        parts,
        text,
        ablations,
        kind=kind,
        max_batch_tokens=3 * len(text.input_ids),
        max_cached_layers=max_cached_layers,
        mean_outputs=mean_outputs,
    )
    whole = [
        _full_loss_nats(parts, text, _AblatedAttention(kind, mean_outputs, [ablation]))
        for ablation in ablations
    ]
    tolerance = 1e-4 if parts.model.dtype == torch.float32 else 2e-2
    for got, wanted in zip([clean_loss, *losses], [whole[0], *whole], strict=True):
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
