"""Measures what ablating heads does to probes, on all of them or in a race: probes in, effects out.

Probes are taken one after the other; all heads that still run are ablated on one before the next is
read. In the race, heads that cannot be among the best any more run no further.

Reference: CircuitSeer, arXiv 2510.18470, for the ablation; the race is this project's.
"""

import hashlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from circuitseer_assets.method import ranking_statistics as statistics
from circuitseer_assets.method.ablation import (
    Ablation,
    DecoderParts,
    Report,
    check_restart,
    decoder_parts,
    mean_head_outputs,
    measure_losses,
)
from circuitseer_assets.method.attention import intercept_attention
from circuitseer_assets.method.ranking_statistics import BoolArray, FloatArray
from circuitseer_assets.records import HeadId, TokenizedText
from circuitseer_assets.settings import HeadRankingSettings

ReportProgress = Callable[[int, int], None]
"""Takes how many ablations are done and how many there will be, as far as is known."""

Journal = MutableMapping[str, FloatArray]
"""What has been measured: by probe the clean loss, by probe and layer each head's effect.

An effect that is not measured is NaN.
"""


@dataclass(slots=True)
class Progress:
    """How many ablations are done, of how many as far as is known; told to `report`.

    What an earlier run has measured counts as neither: rate and remaining time are this run's.
    """

    report: ReportProgress
    total: int
    done: int = 0

    def advance(self, ablations: int) -> None:
        """Counts ablations as done and reports it, if there are any."""
        if ablations:
            self.done += ablations
            self.report(self.done, max(self.total, self.done))


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Effects in nats a token, (heads, probes), NaN where not measured; clean losses, (probes,)."""

    effects: FloatArray
    clean_losses_nats: FloatArray

    @property
    def clean_loss_nats(self) -> float:
        """The mean loss with nothing ablated, 0 without probes."""
        return float(self.clean_losses_nats.mean()) if len(self.clean_losses_nats) else 0.0

    @property
    def num_probes(self) -> int:
        """The number of probes seen."""
        return len(self.clean_losses_nats)


@dataclass(frozen=True, slots=True, eq=False)
class Laboratory:
    """A model ready for ablations."""

    parts: DecoderParts
    heads: tuple[HeadId, ...]
    settings: HeadRankingSettings
    mean_outputs: Tensor | None
    max_batch_tokens: int
    max_cached_layers: int | None
    journal: Journal

    def measure(
        self, texts: Sequence[TokenizedText], which: BoolArray, progress: Progress
    ) -> Measured:
        """Returns the effects of the heads in `which` on `texts`; the others' are NaN."""
        effects = np.full((len(self.heads), len(texts)), np.nan)
        clean = np.zeros(len(texts))
        # Entered once: choosing the attention of a model takes longer than a layer of a small one.
        with intercept_attention(self.parts.model, lambda _, attend: attend()):
            for i, text in enumerate(texts):
                clean[i], measured = self._measure_one(text, which, progress)
                effects[which, i] = measured[which]
        return Measured(effects, clean)

    def _measure_one(
        self, text: TokenizedText, which: BoolArray, progress: Progress
    ) -> tuple[float, FloatArray]:
        clean_key, layer_keys = f"{text.sample_id}:clean", self._layer_keys(text)
        unknown = np.full(self.parts.num_heads, np.nan)
        by_layer = np.stack([self.journal.get(key, unknown) for key in layer_keys])  # (L, H)
        effects = by_layer.reshape(-1)  # a view: what is written here is there as well
        missing = np.flatnonzero(which & np.isnan(effects))
        progress.total -= int(which.sum()) - len(missing)
        if len(missing) == 0 and clean_key in self.journal:
            return float(self.journal[clean_key][0]), effects

        def keep(clean_loss: float, indices: Sequence[int], losses: Sequence[float]) -> None:
            measured = missing[list(indices)]
            effects[measured] = np.array(losses) - clean_loss
            self.journal[clean_key] = np.array([clean_loss])
            for layer in {self.heads[i].layer for i in measured}:
                self.journal[layer_keys[layer]] = by_layer[layer].copy()
            progress.advance(len(measured))

        clean_loss, _ = self._ablate(text, [frozenset({self.heads[i]}) for i in missing], keep)
        return clean_loss, effects

    def _layer_keys(self, text: TokenizedText) -> list[str]:
        return [f"{text.sample_id}:{layer}" for layer in range(self.parts.num_layers)]

    def joint_effects(
        self, texts: Sequence[TokenizedText], ablations: Sequence[Ablation], progress: Progress
    ) -> FloatArray:
        """Returns what each ablation, of many heads together, adds, (ablations, texts)."""
        effects = []
        for text in texts:
            key = f"{text.sample_id}:joint"
            if key in self.journal:
                progress.total -= len(ablations)
            else:
                clean_loss, losses = self._ablate(text, ablations, None)
                self.journal[key] = np.array(losses) - clean_loss
                progress.advance(len(ablations))
            effects.append(self.journal[key])
        return np.stack(effects, axis=1)

    def _ablate(
        self, text: TokenizedText, ablations: Sequence[Ablation], report: Report | None
    ) -> tuple[float, list[float]]:
        return measure_losses(
            self.parts,
            text,
            ablations,
            kind=self.settings.ablation,
            max_batch_tokens=self.max_batch_tokens,
            max_cached_layers=self.max_cached_layers,
            mean_outputs=self.mean_outputs,
            report=report,
        )


def make_laboratory(
    model: PreTrainedModel,
    ranking: Sequence[TokenizedText],
    settings: HeadRankingSettings,
    *,
    max_batch_tokens: int,
    max_cached_layers: int | None = None,
    journal: Journal | None = None,
) -> Laboratory:
    """Returns the model ready for ablations, checked on the first ranking probe.

    Args:
        model: a decoder in evaluation mode.
        ranking: the ranking probes; under `ablation: mean` a head puts out its mean over them.
        settings: how heads are ablated.
        max_batch_tokens: how many tokens run at once.
        max_cached_layers: how many layers' inputs are kept of the clean forward; all if None.
        journal: what is known already, added to as heads are measured.

    Raises:
        ModelError: the architecture is not supported.
    """
    parts = decoder_parts(model)
    heads = tuple(
        HeadId(layer, head) for layer in range(parts.num_layers) for head in range(parts.num_heads)
    )
    means = mean_head_outputs(parts, ranking) if settings.ablation == "mean" else None
    check_restart(
        parts,
        ranking[0],
        kind=settings.ablation,
        mean_outputs=means,
        max_cached_layers=max_cached_layers,
    )
    records: Journal = {} if journal is None else journal
    return Laboratory(parts, heads, settings, means, max_batch_tokens, max_cached_layers, records)


def race(
    lab: Laboratory,
    texts: Sequence[TokenizedText],
    on_control: Measured | None,
    k: int,
    settings: HeadRankingSettings,
    progress: Progress,
) -> Measured:
    """Returns the effects on `texts` in the order of a hash; those a dropped head missed are NaN.

    Args:
        lab: the model.
        texts: the ranking probes.
        on_control: the effects on control texts, where heads are chosen by what exceeds those.
        k: how many heads are wanted.
        settings: the race's first round and width of intervals, or that nobody is dropped.
        progress: counts the ablations; what dropped heads are spared is taken off its total.
    """
    texts = _hash_ordered(texts, settings.seed)
    measured = Measured(np.empty((len(lab.heads), 0)), np.empty(0))
    num_running = len(lab.heads)

    def measure(end: int, running: BoolArray) -> FloatArray:
        nonlocal measured, num_running
        left = int(running.sum())
        progress.total -= (num_running - left) * (len(texts) - measured.num_probes)
        num_running = left
        new = lab.measure(texts[measured.num_probes : end], running, progress)
        measured = Measured(
            np.hstack([measured.effects, new.effects]),
            np.hstack([measured.clean_losses_nats, new.clean_losses_nats]),
        )
        return measured.effects - control_part(measured, on_control)[:, None]

    statistics.run_race(
        measure,
        num_heads=len(lab.heads),
        num_probes=len(texts),
        k=k,
        first_round_probes=len(texts) if settings.exhaustive else settings.first_round_probes,
        z=settings.interval_z,
    )
    return measured


def _hash_ordered(texts: Sequence[TokenizedText], seed: int) -> list[TokenizedText]:
    def key(text: TokenizedText) -> tuple[bytes, str]:
        return hashlib.md5(f"{seed}:{text.sample_id}".encode()).digest(), text.sample_id

    return sorted(texts, key=key)


def control_part(on_ranking: Measured, on_control: Measured | None) -> FloatArray:
    """Returns the part of each head's effect that its effect on control texts explains, (heads,).

    That is the relative rise of the loss on the control texts, in nats of the loss on the probes:
    ranking by the difference is ranking by the difference of relative rises.
    """
    if on_control is None:
        return np.zeros(len(on_ranking.effects))
    scale = on_ranking.clean_loss_nats / on_control.clean_loss_nats
    part: FloatArray = on_control.effects.mean(axis=1) * scale
    return part
