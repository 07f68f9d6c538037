"""Sees and replaces the attention of single heads while a model runs; used by two stages.

Model and tokens in, per-head attention out. Every layer's queries, keys and values are taken after
the rotary embedding, through transformers' own attention interface, so that no model file is
copied; the model itself goes on with SDPA, and no T x T matrix is ever held for all heads.

Reference: CircuitSeer, arXiv 2510.18470.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from circuitseer_assets.errors import ModelError

IMPLEMENTATION = "circuitseer_sdpa"
# Arguments that change the softmax itself: what is computed here from q and k would not be what
# the model does.
_CHANGES_THE_SOFTMAX = ("s_aux", "sinks", "softcap", "position_bias")
_BLOCK_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One layer's attention, just before it is computed.

    Shapes: query (B, H, T, D), key (B, G, T, D), value (B, G, T, V); mask (B or 1, 1, T, T), true
    where a query may look, or None for plain causal attention.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float

    @property
    def num_heads(self) -> int:
        """The number of query heads."""
        return self.query.shape[1]

    @property
    def num_tokens(self) -> int:
        """The number of tokens, padding included."""
        return self.query.shape[2]

    def kv_heads(self, heads: Sequence[int]) -> list[int]:
        """Returns the key/value head that each of these query heads reads."""
        group_size = self.query.shape[1] // self.key.shape[1]
        return [head // group_size for head in heads]

    def row(self, index: int) -> "AttentionCall":
        """Returns the same call for one row of the batch."""
        rows = slice(index, index + 1)
        shared = self.mask is None or self.mask.shape[0] == 1
        mask = self.mask if self.mask is None or shared else self.mask[rows]
        return replace(
            self, query=self.query[rows], key=self.key[rows], value=self.value[rows], mask=mask
        )

    def visible(self, start: int, stop: int) -> Tensor:
        """Returns which keys below `stop` the queries of these rows see, (B or 1, 1, R, stop)."""
        if self.mask is not None:
            return self.mask[:, :, start:stop, :stop]
        rows = torch.arange(start, stop, device=self.query.device)
        columns = torch.arange(stop, device=self.query.device)
        return (columns[None, :] <= rows[:, None])[None, None]

    def num_visible(self) -> Tensor:
        """Returns how many tokens each query sees, (B or 1, T); at least 1, for padded queries."""
        if self.mask is not None:
            return self.mask[:, 0].sum(-1).clamp_min(1)
        return torch.arange(1, self.num_tokens + 1, device=self.query.device)[None]


class Attend(Protocol):
    """Computes a call's attention as the model does, with SDPA."""

    def __call__(self, num_rows: int | None = None) -> Tensor:
        """Returns the output of the batch's first `num_rows`, of all if None, (b, T, H, V)."""
        ...


Interceptor: TypeAlias = Callable[[AttentionCall, Attend], Tensor]
"""Takes a call and a function that computes it with SDPA; returns the output, (B, T, H, V)."""


class StopForward(Exception):  # noqa: N818 - not an error: nothing above this layer is needed
    """Raised by an interceptor to end the forward pass; `intercept_attention` swallows it."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """How many layers a model has, and query heads a layer."""

    num_layers: int
    num_heads: int


_active: ContextVar[Interceptor | None] = ContextVar("circuitseer_interceptor", default=None)


def _attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    def attend(num_rows: int | None = None) -> Tensor:
        batch = query[:num_rows], key[:num_rows], value[:num_rows]
        mask = attention_mask
        if mask is not None and mask.shape[0] > 1:  # else all rows have the same
            mask = mask[:num_rows]
        output, _ = sdpa_attention_forward(module, *batch, mask, scaling=scaling, **kwargs)
        return output

    interceptor = _active.get()
    if interceptor is None:
        return attend(), None
    for name in _CHANGES_THE_SOFTMAX:
        if kwargs.get(name) is not None:
            raise _unsupported(module, f"its attention uses {name}")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise _unsupported(module, "its attention modules do not know their layer (layer_idx)")
    mask = attention_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask >= 0
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(layer, query, key, value, mask, float(scale))
    return interceptor(call, attend), None


AttentionInterface.register(IMPLEMENTATION, _attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def decoder_of(model: PreTrainedModel) -> torch.nn.Module:
    """Returns the model's body: what turns tokens into states, without the output head."""
    decoder: torch.nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


@contextlib.contextmanager
def intercept_attention(model: PreTrainedModel, interceptor: Interceptor) -> Iterator[None]:
    """Returns a context in which `interceptor` computes the model's attention.

    The model's own attention is restored at the end, whatever happens; `StopForward` ends the
    block quietly. Inside another such context only the interceptor changes, which costs nothing.
    """
    previous = model.config._attn_implementation
    token = _active.set(interceptor)
    try:
        if previous != IMPLEMENTATION:
            model.set_attn_implementation(IMPLEMENTATION)
        with contextlib.suppress(StopForward):
            yield
    finally:
        _active.reset(token)
        if previous != IMPLEMENTATION:
            model.set_attn_implementation(previous)


# what one head does -------------------------------------------------------------------------------


def attention_rows(call: AttentionCall, heads: Sequence[int], start: int, stop: int) -> Tensor:
    """Returns the attention of these heads' queries `start` to `stop`, (B, h, R, stop), float32.

    Keys at `stop` and above are left out: no query of these rows sees them. A query that sees
    nothing, as in left padding, has a meaningless row.
    """
    return _rows_of(call, *_queries_and_keys(call, heads, stop), start, stop)


def _queries_and_keys(
    call: AttentionCall, heads: Sequence[int], stop: int
) -> tuple[Tensor, Tensor]:
    """Returns scaled queries, (B, h, T, D), and keys the other way round, (B, h, D, T), float32."""
    query = call.query[:, list(heads), :stop].float() * call.scaling
    key = call.key[:, call.kv_heads(heads), :stop].float()
    return query, key.transpose(-1, -2).contiguous()


def _rows_of(call: AttentionCall, query: Tensor, key: Tensor, start: int, stop: int) -> Tensor:
    logits = query[:, :, start:stop] @ key[..., :stop]
    unseen = torch.finfo(torch.float32).min
    if call.mask is None:  # only the last square has a future to hide
        ahead = torch.ones(stop - start, stop - start, dtype=torch.bool, device=key.device).triu(1)
        logits[..., start:].masked_fill_(ahead, unseen)
    else:
        logits.masked_fill_(~call.visible(start, stop), unseen)
    return logits.softmax(-1)


def received_attention(
    call: AttentionCall,
    heads: Sequence[int],
    query_weights: Tensor,
    *,
    without_self: bool = False,
) -> Tensor:
    """Returns the weighted sum over queries of what each token receives, (B, h, T), float64.

    The attention is computed again from the layer's own queries and keys, in blocks of rows that
    are reduced at once: memory grows with T.

    Args:
        call: the layer's attention.
        heads: which of its query heads.
        query_weights: the weight of each query, (B, T); rows without any weight cost nothing.
        without_self: leave out what a token gives itself.
    """
    batch, tokens = query_weights.shape
    received = torch.zeros(
        batch, len(heads), tokens, dtype=torch.float64, device=query_weights.device
    )
    for start, stop, attention in _blocks_of_rows(call, heads, query_weights):
        if without_self:
            attention.diagonal(offset=start, dim1=-2, dim2=-1).zero_()
        weights = query_weights[:, None, None, start:stop].to(attention.dtype)  # (B, 1, 1, R)
        received[:, :, :stop] += (weights @ attention).squeeze(-2)
    return received


def attention_focus(
    call: AttentionCall, heads: Sequence[int], query_weights: Tensor, key_weights: Tensor
) -> Tensor:
    """Returns how focused each head's attention is, mean over queries, (B, h), float64.

    A query's attention on those of the weighted keys that it sees, made to sum to 1, has an entropy
    H; of n keys the focus is 1 - H / log n: 0 where all get the same, 1 where one gets all. Queries
    that see fewer than two such keys, or give them nothing, are left out; NaN where none is left.

    Args:
        call: the layer's attention.
        heads: which of its query heads.
        query_weights, key_weights: 1 for the queries and the keys that count, else 0, (B, T).
    """
    batch = query_weights.shape[0]
    total = torch.zeros(batch, len(heads), dtype=torch.float64, device=query_weights.device)
    count = torch.zeros_like(total)
    for start, stop, attention in _blocks_of_rows(call, heads, query_weights):
        keys = key_weights[:, None, None, :stop]  # (B, 1, 1, stop)
        share = attention * keys
        mass = share.sum(-1, keepdim=True)
        entropy = torch.special.entr(share / mass.clamp_min(torch.finfo(mass.dtype).tiny)).sum(-1)
        num_seen = (call.visible(start, stop) & keys.bool()).sum(-1)  # (B, 1, R)
        counts = query_weights[:, None, start:stop] * (num_seen > 1) * mass.squeeze(-1).ne(0)
        focus = 1 - entropy / num_seen.clamp_min(2).log()
        total += (focus * counts).sum(-1)
        count += counts.sum(-1)
    return total / count


def mean_look_back(call: AttentionCall, heads: Sequence[int], weights: Tensor) -> Tensor:
    """Returns how far back each head looks among the weighted tokens, (B, h), float64.

    It is the mean of log(1 + i - j) over queries i and keys j, weighted by the attention; NaN where
    there is none.

    Args:
        call: the layer's attention.
        heads: which of its query heads.
        weights: 1 for the tokens that count, as queries and as keys, else 0, (B, T).
    """
    shape = weights.shape[0], len(heads)
    total = torch.zeros(shape, dtype=torch.float64, device=weights.device)
    mass = torch.zeros_like(total)
    places = torch.arange(weights.shape[1], device=weights.device)
    for start, stop, attention in _blocks_of_rows(call, heads, weights):
        counted = weights[:, None, start:stop, None] * weights[:, None, None, :stop]
        share = attention * counted
        distance = (places[start:stop, None] - places[:stop]).clamp_min(0)
        total += (share * distance.to(share.dtype).log1p()).sum((-1, -2), dtype=torch.float64)
        mass += share.sum((-1, -2), dtype=torch.float64)
    return total / mass


def _blocks_of_rows(
    call: AttentionCall, heads: Sequence[int], query_weights: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields the attention of the weighted queries in blocks: start, stop, (B, h, R, stop)."""
    batch, tokens = query_weights.shape
    weighted = query_weights.ne(0).any(0).nonzero().flatten().tolist()
    if not weighted:
        return
    first, last = weighted[0], weighted[-1] + 1
    num_rows = max(16, _BLOCK_ELEMENTS // (batch * len(heads) * tokens))
    query, key = _queries_and_keys(call, heads, last)  # once: gathering them costs as the product
    for start in range(first, last, num_rows):
        stop = min(start + num_rows, last)
        yield start, stop, _rows_of(call, query, key, start, stop)


def num_queries_seeing(call: AttentionCall, query_weights: Tensor) -> Tensor:
    """Returns the weighted number of other queries that see each token, (B, T), float64."""
    weights = query_weights.double()
    if call.mask is None:
        from_here_on = weights.flip(-1).cumsum(-1).flip(-1)
        return from_here_on - weights
    batch, tokens = weights.shape
    counts = torch.zeros_like(weights)
    num_rows = max(16, _BLOCK_ELEMENTS // (batch * tokens))
    for start in range(0, tokens, num_rows):
        stop = min(start + num_rows, tokens)
        visible = call.visible(start, stop)[:, 0].double()  # (B or 1, R, stop)
        visible.diagonal(offset=start, dim1=-2, dim2=-1).zero_()
        counts[:, :stop] += (weights[:, None, start:stop] @ visible).squeeze(-2)
    return counts


def uniform_output(call: AttentionCall, heads: Sequence[int]) -> Tensor:
    """Returns what these heads put out when they attend evenly to all they see, (B, T, h, V).

    That is the mean of the head's own group's values over the visible positions: causal, padding
    left out, sliding window respected. A query that sees nothing puts out zero.
    """
    value = call.value[:, call.kv_heads(heads)].float()  # (B, h, T, V)
    if call.mask is None:
        total = value.cumsum(2)
    else:
        total = torch.empty_like(value)
        num_rows = max(16, _BLOCK_ELEMENTS // call.num_tokens)
        for start in range(0, call.num_tokens, num_rows):
            stop = min(start + num_rows, call.num_tokens)
            visible = call.visible(start, stop).float()
            total[:, :, start:stop] = visible @ value[:, :, :stop]
    mean = total / call.num_visible()[:, None, :, None]
    return mean.transpose(1, 2).to(call.value.dtype)


# what is supported --------------------------------------------------------------------------------


def ensure_supported(model: PreTrainedModel) -> AttentionShape:
    """Returns the model's layers and heads, after a run on six tokens that shows all is standard.

    Every layer must call the attention interface once, with as many query heads as the
    configuration says, and the softmax of q and k over the visible tokens must give SDPA's output.

    Raises:
        ModelError: the architecture is not supported; names it and the reason.
    """
    config = model.config.get_text_config()
    num_layers = getattr(config, "num_hidden_layers", None)
    num_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(num_layers, int) or not isinstance(num_heads, int):
        raise _unsupported(model, "its configuration names no layers or no attention heads")
    shape = AttentionShape(num_layers, num_heads)
    if not model._can_set_attn_implementation():
        raise _unsupported(model, "it does not use transformers' attention interface")
    if not model._supports_sdpa:
        raise _unsupported(model, "its attention is more than SDPA computes (sinks, soft caps)")
    seen: list[int] = []

    def check(call: AttentionCall, attend: Attend) -> Tensor:
        output = attend()
        _check_call(model, call, output, shape)
        seen.append(call.layer)
        return output

    tokens = torch.arange(1, 7, device=model.device)[None] % config.vocab_size
    try:
        with torch.inference_mode(), intercept_attention(model, check):
            model(input_ids=tokens, use_cache=False)
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise _unsupported(model, " ".join(str(error).split())) from error
    if sorted(seen) != list(range(shape.num_layers)):
        missing = sorted(set(range(shape.num_layers)) - set(seen)) or sorted(seen)
        raise _unsupported(
            model, f"its layers {missing} do not call standard attention exactly once"
        )
    return shape


def _check_call(
    model: PreTrainedModel, call: AttentionCall, output: Tensor, shape: AttentionShape
) -> None:
    heads, groups = call.num_heads, call.key.shape[1]
    if heads != shape.num_heads or heads % groups:
        raise _unsupported(
            model,
            f"layer {call.layer} has {heads} query and {groups} key/value heads where its "
            f"configuration says {shape.num_heads} query heads",
        )
    if not bool(output.isfinite().all()):
        raise _unsupported(
            model,
            f"layer {call.layer} gives NaN or infinity: damaged weights, or too narrow a dtype",
        )
    attention = attention_rows(call, range(heads), 0, call.num_tokens)
    if bool(attention.triu(1).any()):
        raise _unsupported(model, f"layer {call.layer} looks ahead: its attention is not causal")
    value = call.value[:, call.kv_heads(range(heads))].float()
    expected = (attention @ value).transpose(1, 2)
    tolerance = 1e-4 if output.dtype == torch.float32 else 3e-2
    if not torch.allclose(output.float(), expected, rtol=tolerance, atol=tolerance):
        raise _unsupported(
            model, f"layer {call.layer} is not the causal softmax of its queries and keys alone"
        )


def _unsupported(module: torch.nn.Module, reason: str) -> ModelError:
    config = getattr(module, "config", None)
    named = getattr(config, "model_type", None) or type(module).__name__
    return ModelError(
        f"base_model must be a decoder with standard softmax attention, got architecture "
        f"{named!r}: {reason}; choose another base_model"
    )
