"""Ranks attention heads by what their removal costs on reasoning: probe_set in, head_ranking out.

One head at a time is made to attend evenly to all it sees; the heads whose ablation raises the loss
of the reference response most are the reasoning heads. A race over the probes spares the heads that
cannot win, and fresh probes say which of the chosen are real.

Reference: CircuitSeer, arXiv 2510.18470.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from circuitseer_assets.errors import CorpusError, ModelError, SettingsError
from circuitseer_assets.method import ranking_statistics as statistics
from circuitseer_assets.method.head_effects import (
    Journal,
    Laboratory,
    Measured,
    Progress,
    ReportProgress,
    control_part,
    make_laboratory,
    race,
)
from circuitseer_assets.method.ranking_statistics import BoolArray, FloatArray
from circuitseer_assets.records import (
    CONFIRMATION_LEVEL,
    HeadId,
    HeadImportance,
    HeadRanking,
    JointAblation,
    TokenizedText,
)
from circuitseer_assets.settings import HeadRankingSettings


def rank_heads(
    model: PreTrainedModel,
    *,
    ranking: Sequence[TokenizedText],
    confirmation: Sequence[TokenizedText],
    control: Sequence[TokenizedText],
    settings: HeadRankingSettings,
    max_batch_tokens: int,
    max_cached_layers: int | None = None,
    report_progress: ReportProgress | None = None,
    journal: Journal | None = None,
) -> HeadRanking:
    """Returns all heads by importance, the chosen ones confirmed on probes of their own.

    A head's importance is the mean over `ranking` of loss(ablated) - loss(clean), in nats a token
    of the response. `delta_control_nats` is measured for all heads where `select_by` needs it, else
    for the chosen ones. Under `ablation: mean` a head puts out its mean output over all tokens of
    the ranking probes.

    Args:
        model: a decoder in evaluation mode.
        ranking: probes that the heads are ranked on.
        confirmation: other probes, for the evidence.
        control: texts that need no reasoning; may be empty.
        settings: how heads are ablated, chosen and confirmed.
        max_batch_tokens: how many tokens run at once.
        max_cached_layers: how many layers' inputs are kept of a probe; all if None. Fewer need less
            memory and more time; the result is the same.
        report_progress: called as heads are measured.
        journal: what an earlier, interrupted call with the same model, texts and settings measured;
            it is read first and added to as heads are measured.

    Raises:
        ModelError: the architecture is not supported, or a probe is longer than its context.
        SettingsError: the settings cannot be met with this model and these probes.
        CorpusError: a probe has no response.
    """
    _check_probes(model, ranking, confirmation, control, settings)
    lab = make_laboratory(
        model,
        ranking,
        settings,
        max_batch_tokens=max_batch_tokens,
        max_cached_layers=max_cached_layers,
        journal=journal,
    )
    num_heads = len(lab.heads)
    k = statistics.num_chosen_heads(settings.fraction, num_heads)
    report = report_progress or (lambda done, total: None)
    specific = settings.select_by == "specific_delta"
    rest = k * (len(confirmation) + (0 if specific else len(control)))
    rest += (1 + settings.num_random_draws) * len(confirmation)
    progress = Progress(report, num_heads * (len(ranking) + len(control) * specific) + rest)

    everyone: BoolArray = np.ones(num_heads, dtype=np.bool_)
    on_control = lab.measure(control, everyone, progress) if specific else None
    on_ranking = race(lab, ranking, on_control, k, settings, progress)
    values = _selection_values(on_ranking, on_control)
    finished = np.where(np.isnan(on_ranking.effects).any(axis=1), np.nan, values)
    is_chosen: BoolArray = np.isin(np.arange(num_heads), statistics.top_heads(finished, k))
    on_confirmation = lab.measure(confirmation, is_chosen, progress)
    if on_control is None:
        on_control = lab.measure(control, is_chosen, progress)

    evidence = _Evidence(on_ranking, on_confirmation, on_control)
    rows = _importance(lab.heads, values, is_chosen, evidence, settings)
    reasoning = [row.head for row in rows if row.is_reasoning_head]
    return HeadRanking(
        importance=rows,
        num_layers=lab.parts.num_layers,
        num_heads=lab.parts.num_heads,
        clean_loss_nats=on_ranking.clean_loss_nats,
        clean_confirmation_loss_nats=on_confirmation.clean_loss_nats,
        clean_control_loss_nats=on_control.clean_loss_nats if control else None,
        boundary_gap_nats=_boundary_gap(values, finished, is_chosen),
        split_half_overlap=statistics.split_half_overlap(
            on_ranking.effects
            - control_part(on_ranking, on_control if specific else None)[:, None],
            k,
        ),
        joint=_joint_ablation(lab, reasoning, confirmation, settings, progress),
    )


def _check_probes(
    model: PreTrainedModel,
    ranking: Sequence[TokenizedText],
    confirmation: Sequence[TokenizedText],
    control: Sequence[TokenizedText],
    settings: HeadRankingSettings,
) -> None:
    for name, texts in (("num_ranking", ranking), ("num_confirmation", confirmation)):
        if len(texts) < 2:
            raise SettingsError(
                f"probe_set.{name} must give at least 2 probes, got {len(texts)}; enlarge it, or "
                f"the corpus"
            )
    if settings.select_by == "specific_delta" and not control:
        raise SettingsError(
            "probe_set.num_control must be at least 1 when head_ranking.select_by is "
            "'specific_delta', got 0; set probe_set.num_control"
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for text in (*ranking, *confirmation, *control):
        if len(text.input_ids) <= max(text.response_start, 1):
            raise CorpusError(
                f"every probe must have a response, sample {text.sample_id} has none; remove it "
                f"from the corpus"
            )
        if context is not None and len(text.input_ids) > context:
            raise ModelError(
                f"every probe must fit into base_model's context of {context} tokens, sample "
                f"{text.sample_id} has {len(text.input_ids)}; set probe_set.max_characters"
            )


# choosing -----------------------------------------------------------------------------------------


def _selection_values(on_ranking: Measured, on_control: Measured | None) -> FloatArray:
    means = np.nanmean(on_ranking.effects, axis=1)
    values: FloatArray = means - control_part(on_ranking, on_control)
    return values


def _boundary_gap(values: FloatArray, finished: FloatArray, is_chosen: BoolArray) -> float:
    """Returns by how much the last chosen head beats the next, preferably one seen on all."""
    if is_chosen.all():
        return 0.0
    rest = finished[~is_chosen]
    if np.isnan(rest).all():
        rest = values[~is_chosen]
    return float(values[is_chosen].min() - np.nanmax(rest))


@dataclass(frozen=True, slots=True, eq=False)
class _Evidence:
    on_ranking: Measured
    on_confirmation: Measured
    on_control: Measured


def _importance(
    heads: Sequence[HeadId],
    values: FloatArray,
    is_chosen: BoolArray,
    evidence: _Evidence,
    settings: HeadRankingSettings,
) -> tuple[HeadImportance, ...]:
    chosen = np.flatnonzero(is_chosen)
    p_values = [statistics.paired_t_p_value(evidence.on_confirmation.effects[i]) for i in chosen]
    p_holm = dict(
        zip(chosen.tolist(), statistics.holm_adjusted(np.array(p_values)).tolist(), strict=True)
    )
    order = np.lexsort((np.arange(len(heads)), -values, ~is_chosen))
    rows = tuple(_importance_of(heads[i], i, p_holm.get(i), evidence) for i in order.tolist())
    if settings.unconfirmed == "keep":
        return rows
    return _without_unconfirmed(rows, evidence.on_confirmation.num_probes)


def _importance_of(
    head: HeadId, i: int, p_holm: float | None, evidence: _Evidence
) -> HeadImportance:
    effects = evidence.on_ranking.effects[i]
    seen = effects[~np.isnan(effects)]
    stderr, low, high = statistics.t_interval(seen)
    confirmed = None
    if p_holm is not None:
        on_confirmation = evidence.on_confirmation.effects[i]
        confirmed = float(on_confirmation.mean())
        _, low, high = statistics.t_interval(on_confirmation)
    on_control = evidence.on_control.effects[i]
    has_control = len(on_control) > 0 and not np.isnan(on_control).any()
    return HeadImportance(
        head=head,
        delta_loss_nats=float(seen.mean()),
        stderr=stderr,
        ci_low=low,
        ci_high=high,
        num_probes=len(seen),
        measured_on_all=len(seen) == len(effects),
        is_reasoning_head=p_holm is not None,
        confirmed_delta_nats=confirmed,
        p_holm=p_holm,
        delta_control_nats=float(on_control.mean()) if has_control else None,
    )


def _without_unconfirmed(
    rows: tuple[HeadImportance, ...], num_probes: int
) -> tuple[HeadImportance, ...]:
    kept = tuple(
        replace(row, is_reasoning_head=row.p_holm is not None and row.p_holm <= CONFIRMATION_LEVEL)
        for row in rows
    )
    if not any(row.is_reasoning_head for row in kept):
        raise SettingsError(
            f"head_ranking.unconfirmed is 'drop' and none of the chosen heads has a Holm-adjusted "
            f"p-value of at most {CONFIRMATION_LEVEL} on {num_probes} confirmation probes; raise "
            f"probe_set.num_confirmation, or set head_ranking.unconfirmed to 'keep'"
        )
    return kept


def _joint_ablation(
    lab: Laboratory,
    reasoning: Sequence[HeadId],
    texts: Sequence[TokenizedText],
    settings: HeadRankingSettings,
    progress: Progress,
) -> JointAblation:
    draws = random_head_sets(reasoning, lab.heads, settings.num_random_draws, settings.seed)
    means = lab.joint_effects(texts, [frozenset(reasoning), *draws], progress).mean(axis=1)
    as_bad = int((means[1:] >= means[0]).sum())
    return JointAblation(
        delta_chosen_nats=float(means[0]),
        delta_random_nats=tuple(means[1:].tolist()),
        p_value=(1 + as_bad) / (1 + len(draws)),
    )


def random_head_sets(
    chosen: Sequence[HeadId], heads: Sequence[HeadId], num_draws: int, seed: int
) -> list[frozenset[HeadId]]:
    """Returns `num_draws` sets of as many unchosen heads from the same layers.

    A layer with fewer unchosen than chosen heads gives all it has: the set is then smaller.
    """
    random = np.random.default_rng(seed)
    layers = sorted({head.layer for head in chosen})
    others = {
        layer: [head for head in heads if head.layer == layer and head not in chosen]
        for layer in layers
    }
    wanted = {layer: sum(head.layer == layer for head in chosen) for layer in layers}
    return [
        frozenset(
            others[layer][i]
            for layer in layers
            for i in random.permutation(len(others[layer]))[: wanted[layer]]
        )
        for _ in range(num_draws)
    ]
