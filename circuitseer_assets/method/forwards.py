"""Counts what a model is asked to compute: forwards and tokens, whoever runs it.

A stage's cost in two figures that no machine changes, unlike seconds.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitseer_assets.method.ablation import decoder_layers
from circuitseer_assets.records import ModelUse


class ForwardCounter:
    """What went through a model's layers so far."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._rows = self._tokens = 0

    @property
    def use(self) -> ModelUse:
        """The forwards and tokens counted so far."""
        return ModelUse(self._rows / self._num_layers, round(self._tokens / self._num_layers))

    def count(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Counts one layer's batch, (B, T, C), before the layer runs."""
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        self._rows += states.shape[0]
        self._tokens += states.shape[0] * states.shape[1]


@contextlib.contextmanager
def count_forwards(model: PreTrainedModel) -> Iterator[ForwardCounter]:
    """Returns a context in which the model's forwards and tokens are counted.

    A forward is one sequence through all layers: through half of them it counts half, recomputed
    it counts again, and a token that is generated is a forward of its own. Padding counts as
    tokens.

    Raises:
        ModelError: the model's layers cannot be found.
    """
    layers = decoder_layers(model)
    counter = ForwardCounter(len(layers))
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hook = layer.register_forward_pre_hook(counter.count, with_kwargs=True)
            hooks.callback(hook.remove)
        yield counter
