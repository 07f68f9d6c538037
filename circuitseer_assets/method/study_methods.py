"""The methods a study compares: what each changes in the settings, and what it is there for.

A cell of the study is one method with one seed: the settings in use with the method's changes, and
the seed for its selection and its training. Everything else is the same for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from circuitseer_assets.errors import SettingsError

Role = Literal["method", "ablation", "baseline", "control"]


@dataclass(frozen=True, slots=True)
class StudyMethod:
    """One way to select, as changes of the slices `scoring` and `selection`.

    Attributes:
        role: what it is in the comparison.
        scoring: changed settings of the slice `scoring`, from its defaults.
        selection: changed settings of the slice `selection`.
        budget: `share` is the settings' own budget; `tokens` as many tokens as that share of the
            pool's tokens; `all` the whole pool.
        draws_heads: another set of random heads for every seed.
    """

    role: Role
    scoring: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    budget: Literal["share", "tokens", "all"] = "share"
    draws_heads: bool = False


def _scored_by(scorer: str, role: Role = "baseline", **changes: Any) -> StudyMethod:
    return StudyMethod(role, {"scorer": scorer}, **changes)


_TOP = {"sampling": "top"}

METHODS: Mapping[str, StudyMethod] = {
    "circuitseer": StudyMethod("method"),
    "all_heads": StudyMethod("ablation", {"heads": "all"}),
    "random_heads": StudyMethod("ablation", {"heads": "random"}, draws_heads=True),
    "top_k": StudyMethod("ablation", selection=_TOP),
    "output_based": StudyMethod("ablation", {"span": "response"}),
    "attention_cv2": StudyMethod("ablation", {"reading": "attention_cv2"}),
    "attention_lift": StudyMethod("ablation", {"reading": "attention_lift"}),
    "content_tokens": StudyMethod("ablation", {"tokens": "content"}),
    "length_debiased": StudyMethod("ablation", selection={"debias": "length"}),
    "random": _scored_by("random"),
    "max_loss": _scored_by("max_loss", selection=_TOP),
    "ifd": _scored_by("ifd", selection=_TOP),
    "quality": _scored_by("quality", selection=_TOP),
    "diversity": _scored_by("diversity", selection=_TOP),
    "attention_influence": StudyMethod(
        "baseline", {"scorer": "attention_influence", "heads": "retrieval"}, _TOP
    ),
    "length": _scored_by("length", "control"),
    "full": _scored_by("random", budget="all"),
    "oracle": _scored_by("oracle", "control"),
    "circuitseer_tokens": StudyMethod("method", budget="tokens"),
    "random_tokens": _scored_by("random", budget="tokens"),
    "length_tokens": _scored_by("length", "control", budget="tokens"),
}

PRIMARY_PAIRS = (("circuitseer", "random"), ("circuitseer", "full"))
"""The hypotheses fixed beforehand; every other comparison is an exploration."""

SENSITIVITY_PAIR = ("oracle", "random")
"""What a study must be able to tell apart before it may say anything."""


def find_method(name: str) -> StudyMethod:
    """Returns the method of this name.

    Raises:
        SettingsError: there is none.
    """
    if name not in METHODS:
        raise SettingsError(
            f"study.methods must be among {', '.join(METHODS)}, got {name!r}; correct it in "
            f"circuitseer.yaml"
        )
    return METHODS[name]


def cell_settings(
    method: StudyMethod,
    seed: int,
    *,
    selection: Mapping[str, Any],
    training: Mapping[str, Any],
    num_pool_tokens: int,
) -> dict[str, dict[str, Any]]:
    """Returns the slices of one cell, as plain JSON values.

    Args:
        method: what the cell selects by.
        seed: of its selection, its training and, where they are drawn, its heads.
        selection, training: the slices in use.
        num_pool_tokens: tokens of the whole pool, for a budget of tokens.

    Raises:
        SettingsError: a budget of tokens where the settings' own budget is no share.
    """
    budget = dict(selection["budget"])
    if method.budget == "all":
        budget = {"fraction": 1.0}
    elif method.budget == "tokens":
        if budget.get("fraction") is None:
            raise SettingsError(
                f"selection.budget must be a fraction for a study with equal tokens, got {budget}; "
                f"set selection.budget.fraction, or leave these methods out"
            )
        budget = {"tokens": round(budget["fraction"] * num_pool_tokens)}
    scoring = dict(method.scoring)
    if method.draws_heads:
        scoring["seed"] = seed
    return {
        "scoring": scoring,
        "selection": {**selection, **method.selection, "budget": budget, "seed": seed},
        "training": {**training, "seed": seed},
    }
