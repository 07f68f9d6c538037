"""What the audit's page tells of a run, as records: read by `resources`, shown by `report_page`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitseer_assets.method.audit import Lineage
from circuitseer_assets.method.composition import Composition
from circuitseer_assets.method.evaluation import TaskComparison, TaskSummary
from circuitseer_assets.method.explanation import Explanation
from circuitseer_assets.method.paired_outcomes import PairedProblems
from circuitseer_assets.records import HeadRanking
from circuitseer_assets.settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class AnsweredProblem:
    """One problem with an answer of the base model and one of the checkpoint."""

    doc_id: str
    prompt: str
    base_response: str
    checkpoint_response: str


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task of the evaluation: both models, their difference, and problems that changed."""

    base: TaskSummary
    checkpoint: TaskSummary
    difference: TaskComparison
    paired: PairedProblems
    newly_solved: tuple[AnsweredProblem, ...]
    newly_lost: tuple[AnsweredProblem, ...]


@dataclass(frozen=True, slots=True)
class RemovedSample:
    """One sample that decontamination removed, beside the problem it repeats."""

    sample_id: str
    prompt: str
    task: str
    doc_id: str
    problem: str
    rule: str


@dataclass(frozen=True, slots=True)
class PoolReport:
    """How the corpus became the pool."""

    num_samples: int
    num_quarantined: int
    quarantined_by_reason: Mapping[str, int]
    num_probes: int
    num_pool: int
    num_removed: int
    removed_by_rule: Mapping[str, int]
    benchmarks: tuple[str, ...]
    removed: tuple[RemovedSample, ...]


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The scores of the pool, in order of sample id, and which of the samples were drawn.

    `heads` are those that the scores depend on: none where the scorer uses none.
    """

    scoring: ScoringSettings
    heads: tuple[str, ...]
    scores: NDArray[np.float64]
    num_prompt_tokens: NDArray[np.int64]
    is_drawn: NDArray[np.bool_]
    length_correlation: float | None
    num_unscored: int
    draw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything on the audit's page.

    Attributes:
        audit_id: the audit's.
        base_model: what the settings call the model.
        lineage: the evaluation and everything it was made from.
        pool, ranking, scores, tasks: what each stage came to.
        head_settings, selection: the slices `head_ranking` and `selection`.
        training: what the training said of itself.
        compositions: what the subset is made of.
        samples: groups of explained samples, by what they are examples of.
        settings_yaml: the settings that give the same run again.
        versions: of Python and what it ran on, by name.
    """

    audit_id: str
    base_model: str
    lineage: Lineage
    pool: PoolReport
    ranking: HeadRanking
    head_settings: Mapping[str, Any]
    scores: ScoreReport
    selection: Mapping[str, Any]
    training: Mapping[str, Any]
    compositions: tuple[Composition, ...]
    samples: Mapping[str, Sequence[Explanation]]
    tasks: tuple[TaskReport, ...]
    settings_yaml: str
    versions: Mapping[str, str]
