"""The methods a study compares: what each changes in the settings, and what it is there for.

A cell of the study is one method with one seed: the settings in use with the method's changes, and
the seed for its selection and its training. Everything else is the same for all.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.scorers import SCORERS
from circuitseer_assets.records import PoolSize

Role = Literal["method", "ablation", "baseline", "control"]


@dataclass(frozen=True, slots=True)
class StudyMethod:
    """One way to select, as changes of the slices `scoring` and `selection`.

    Attributes:
        role: what it is in the comparison.
        scoring: changed settings of the slice `scoring`, from its defaults but for which prompts
            are too short or too long.
        selection: changed settings of the slice `selection`, from those in use.
        budget: `share` is the settings' own budget; `tokens` as many tokens as that share of the
            pool's tokens; `all` the whole pool.
        draws_heads: another set of random heads for every seed.
    """

    role: Role
    scoring: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    budget: Literal["share", "tokens", "all"] = "share"
    draws_heads: bool = False

    @property
    def scorer(self) -> str:
        """The name of its scorer."""
        return str(self.scoring.get("scorer", "attention"))

    @property
    def reads_ranking(self) -> bool:
        """Whether it needs the reasoning heads: to read them, or others beside them."""
        heads = self.scoring.get("heads", "reasoning")
        return SCORERS[self.scorer].uses_heads and heads in ("reasoning", "random")


def _scored_by(scorer: str, role: Role = "baseline", **changes: Any) -> StudyMethod:
    return StudyMethod(role, {"scorer": scorer}, **changes)


_TOP = {"sampling": "top"}

_CHOSEN: Mapping[str, StudyMethod] = {
    "circuitseer": StudyMethod("method"),
    "all_heads": StudyMethod("ablation", {"heads": "all"}),
    "random_heads": StudyMethod("ablation", {"heads": "random"}, draws_heads=True),
    "top_k": StudyMethod("ablation", selection=_TOP),
    "output_based": StudyMethod("ablation", {"span": "response"}),
    "attention_cv2": StudyMethod("ablation", {"reading": "attention_cv2"}),
    "attention_lift": StudyMethod("ablation", {"reading": "attention_lift"}),
    "attention_focus": StudyMethod("ablation", {"reading": "attention_focus", "tokens": "content"}),
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
    "shortness": _scored_by("shortness", "control"),
    "full": _scored_by("random", budget="all"),
    "oracle": _scored_by("oracle", "control"),
    "circuitseer_tokens": StudyMethod("method", budget="tokens"),
    "random_tokens": _scored_by("random", budget="tokens"),
    "length_tokens": _scored_by("length", "control", budget="tokens"),
    "shortness_tokens": _scored_by("shortness", "control", budget="tokens"),
}


def baselines_besides(
    methods: Mapping[str, StudyMethod], scorers: Iterable[str]
) -> dict[str, StudyMethod]:
    """Returns a baseline of its own name, which takes the top, for each scorer no method has."""
    known = {method.scorer for method in methods.values()}
    return {name: _scored_by(name, selection=_TOP) for name in scorers if name not in known}


METHODS: Mapping[str, StudyMethod] = {**_CHOSEN, **baselines_besides(_CHOSEN, SCORERS)}

PRIMARY_PAIRS = (("circuitseer", "random"), ("circuitseer", "full"))
"""The hypotheses fixed beforehand; every other comparison is an exploration."""

POOLED_METHODS = ("circuitseer", "random", "full", "oracle")
"""Those whose runs tell, together, how much a run varies, were they to vary alike."""

SENSITIVITY_PAIR = ("oracle", "random")
"""What a study must be able to tell apart before it may say anything."""

CLAIMS = (
    ("a tenth of the data beats all of it", "circuitseer", "full"),
    ("it beats a random subset", "circuitseer", "random"),
    ("it beats a random subset of as many tokens", "circuitseer_tokens", "random_tokens"),
    ("it beats choosing long samples", "circuitseer", "length"),
    ("it beats choosing long samples, with as many tokens", "circuitseer_tokens", "length_tokens"),
    ("it beats choosing short prompts", "circuitseer", "shortness"),
    (
        "it beats choosing short prompts, with as many tokens",
        "circuitseer_tokens",
        "shortness_tokens",
    ),
    ("it beats the highest loss", "circuitseer", "max_loss"),
    ("it beats instruction-following difficulty", "circuitseer", "ifd"),
    ("it beats quality as the model judges it", "circuitseer", "quality"),
    ("it beats diversity", "circuitseer", "diversity"),
    ("it beats attention influence", "circuitseer", "attention_influence"),
    ("reasoning heads beat all heads", "circuitseer", "all_heads"),
    ("reasoning heads beat random heads", "circuitseer", "random_heads"),
    ("a soft draw beats the top scores", "circuitseer", "top_k"),
    ("the attention on the prompt beats that on the response", "circuitseer", "output_based"),
)
"""What the article says, or would have to: the claim, the method and what it is compared to."""


def list_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what a study of these methods compares: the claims, and every method with random."""
    pairs = [(method, against) for _, method, against in CLAIMS]
    pairs += [(method, "random") for method in methods]
    return [
        (method, against)
        for method, against in dict.fromkeys(pairs)
        if method in methods and against in methods and method != against
    ]


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


def cell_slice(
    method: StudyMethod,
    seed: int,
    name: str,
    values: Mapping[str, Any],
    *,
    measure_pool: Callable[[], PoolSize],
) -> dict[str, Any]:
    """Returns one settings slice as a cell has it, as plain JSON values.

    Args:
        method: what the cell selects by.
        seed: of its selection, its training and, where they are drawn, its heads.
        name: of the slice.
        values: the slice in use.
        measure_pool: tells the size of the pool; asked for the slice `selection` alone.

    Raises:
        SettingsError: a budget of tokens where the settings' own budget is no share.
    """
    if name == "scoring":
        limits = {key: values[key] for key in ("min_tokens", "max_tokens", "long_prompts")}
        own = {"seed": seed} if method.draws_heads else {}
        return {**limits, **method.scoring, **own}
    if name == "training":
        return {**values, "seed": seed}
    if name != "selection":
        return dict(values)
    budget = _budget_of(method, values["budget"], measure_pool)
    return {**values, **method.selection, "budget": budget, "seed": seed}


def _budget_of(
    method: StudyMethod, budget: Mapping[str, Any], measure_pool: Callable[[], PoolSize]
) -> dict[str, Any]:
    """Returns a budget that is the same for all: a share is of the pool, scored or not."""
    share = budget.get("fraction")
    if method.budget == "all":
        return {"fraction": 1.0}
    if method.budget == "tokens":
        if share is None:
            raise SettingsError(
                f"selection.budget must be a fraction for a study with equal tokens, got "
                f"{dict(budget)}; set selection.budget.fraction, or leave these methods out"
            )
        return {"tokens": round(share * measure_pool().num_tokens)}
    if share is None:
        return dict(budget)
    size = measure_pool()
    if size.num_scored == size.num_samples:
        return dict(budget)
    return {"samples": math.floor(share * size.num_samples + 0.5)}
