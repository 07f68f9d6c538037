"""Sets of heads to read: the ranking's own, all, as many others at random, or those that copy."""

from collections.abc import Sequence

import numpy as np

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.records import HeadId
from circuitseer_assets.settings import ScoringSettings


def choose_heads(
    reasoning_heads: Sequence[HeadId],
    num_layers: int,
    num_heads: int,
    settings: ScoringSettings,
    *,
    retrieval_heads: Sequence[HeadId] = (),
) -> tuple[HeadId, ...]:
    """Returns the heads that `settings.heads` names, by (layer, head).

    `reasoning` are the ranking's; `all` are all; `random` are those of `draw_other_heads` by
    `settings.seed`; `retrieval` are those of `find_retrieval_heads`, to be passed in, for they take
    a pass of the model.

    Raises:
        SettingsError: no heads are left to choose.
    """
    if settings.heads == "all":
        chosen = [HeadId(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    elif settings.heads == "reasoning":
        chosen = list(reasoning_heads)
    elif settings.heads == "retrieval":
        chosen = list(retrieval_heads)
    else:
        random = np.random.default_rng(settings.seed)
        chosen = draw_other_heads(reasoning_heads, num_layers, num_heads, random)
    if not chosen:
        raise SettingsError(
            f"scoring.heads must name at least one head, got {settings.heads!r} with none to "
            f"choose; set scoring.heads to 'reasoning', or a smaller head_ranking.fraction"
        )
    return tuple(sorted(chosen))


def draw_other_heads(
    heads: Sequence[HeadId], num_layers: int, num_heads: int, random: np.random.Generator
) -> list[HeadId]:
    """Returns as many heads as are given, none of them given, in the same layers where it can be.

    A layer that has fewer others than it has given heads gives them all; what is lacking comes from
    the nearest layers with heads left, of two as near from the deeper one.

    Raises:
        SettingsError: more than half of the model's heads are given.
    """
    if 2 * len(heads) > num_layers * num_heads:
        raise SettingsError(
            f"scoring.heads must leave as many other heads as were chosen to be 'random', got "
            f"{len(heads)} chosen of {num_layers * num_heads}; lower head_ranking.fraction"
        )
    given = set(heads)
    left = {
        layer: [
            HeadId(layer, int(head))
            for head in random.permutation(num_heads)
            if HeadId(layer, int(head)) not in given
        ]
        for layer in range(num_layers)
    }
    drawn, lacking = [], []
    for head in sorted(given):
        if left[head.layer]:
            drawn.append(left[head.layer].pop())
        else:
            lacking.append(head.layer)
    for layer in lacking:
        nearest = min((one for one in left if left[one]), key=lambda one: (abs(one - layer), -one))
        drawn.append(left[nearest].pop())
    return drawn
