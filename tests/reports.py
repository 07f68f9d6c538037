"""A report made of nothing but records, with texts that try to be markup."""

from datetime import UTC, datetime

import numpy as np

from circuitseer_assets.method.audit import Lineage
from circuitseer_assets.method.composition import Composition
from circuitseer_assets.method.evaluation import compare, summarise
from circuitseer_assets.method.explanation import (
    Explanation,
    Place,
    ReadTokens,
    Standing,
    Token,
)
from circuitseer_assets.method.paired_outcomes import pair_problems
from circuitseer_assets.method.report import (
    AnsweredProblem,
    PoolReport,
    RemovedSample,
    Report,
    ScoreReport,
    TaskReport,
)
from circuitseer_assets.records import (
    Artifact,
    HeadId,
    HeadImportance,
    HeadRanking,
    JointAblation,
    Outcome,
)
from circuitseer_assets.settings import ScoringSettings

HOSTILE = "<script>alert(1)</script>"
HOSTILE_FILE = """it's a "file" & <b>more</b>.jsonl"""
CHAIN = {
    "evaluation": ("checkpoint", "evaluation_base"),
    "checkpoint": ("subset",),
    "evaluation_base": (),
    "subset": ("sample_scores",),
    "sample_scores": ("pool", "head_ranking"),
    "pool": ("corpus", "probe_set"),
    "head_ranking": ("probe_set",),
    "probe_set": ("corpus",),
    "corpus": (),
}


def make_report(num_layers: int = 6, num_heads: int = 8, num_samples: int = 120) -> Report:
    """Returns a report of a run that never was; every third sample is drawn."""
    numbers = np.arange(num_samples)
    scores, lengths = 1e-4 * (1 + (7 * numbers) % 40), 20 + (11 * numbers) % 90
    return Report(
        audit_id="audit-0",
        base_model=f"models/{HOSTILE}",
        lineage=make_lineage(),
        pool=PoolReport(
            num_samples=num_samples + 30,
            num_quarantined=3,
            quarantined_by_reason={HOSTILE: 3},
            num_probes=20,
            num_pool=num_samples,
            num_removed=10,
            removed_by_rule={"verbatim": 10},
            benchmarks=(HOSTILE_FILE,),
            removed=(RemovedSample("s0", HOSTILE, "task", "doc-1", HOSTILE, "verbatim"),),
        ),
        ranking=make_ranking(num_layers, num_heads),
        head_settings={"ablation": "uniform", "fraction": 0.1},
        scores=ScoreReport(
            scoring=ScoringSettings(),
            heads=("0.0", "0.1"),
            scores=scores,
            num_prompt_tokens=lengths,
            is_drawn=numbers % 3 == 0,
            length_correlation=-0.8,
            num_unscored=2,
            draw={
                "num_samples": num_samples // 3,
                "num_pool": num_samples,
                "effective_pool_size": 0.8 * num_samples,
                "score_tilt_sd": 0.1,
                "random_tilt_sd": 0.12,
            },
        ),
        selection={"power": 1},
        training={"num_steps": 12},
        compositions=(
            Composition("source", {HOSTILE_FILE: 80, "b": 40}, {HOSTILE_FILE: 10, "b": 30}),
        ),
        samples={"Highest scores": [make_explanation()]},
        tasks=(make_task(),),
        settings_yaml=f"preset: tiny\ncorpus:\n  paths: ['{HOSTILE}']\n",
        versions={"python": "3.11"},
    )


def make_lineage() -> Lineage:
    """Returns the lineage of an evaluation, as a run makes it."""
    artifacts = tuple(
        Artifact(
            artifact_id=name,
            stage=name.removesuffix("_base"),
            data_version=f"v-{name}",
            parents=parents,
            settings={"path": HOSTILE_FILE},
            code_version="1",
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        for name, parents in CHAIN.items()
    )
    facts = {
        "head_ranking": {"reasoning_heads": ["0.0", "0.1"]},
        "evaluation": {"pass_at_1": {"task": 0.5}},
    }
    return Lineage(artifacts, facts=facts)


def make_ranking(num_layers: int, num_heads: int) -> HeadRanking:
    """Returns a ranking of which the first head is confirmed, the second not, the last unknown."""
    importance = []
    for i in range(num_layers * num_heads - 1):
        chosen = i < 2
        delta = 0.5 / (i + 1) * (-1 if i % 5 == 4 else 1)
        importance.append(
            HeadImportance(
                head=HeadId(i // num_heads, i % num_heads),
                delta_loss_nats=delta,
                stderr=0.01,
                ci_low=delta - 0.02,
                ci_high=delta + 0.02,
                num_probes=8,
                measured_on_all=True,
                is_reasoning_head=chosen,
                confirmed_delta_nats=delta if chosen else None,
                p_holm=(0.001, 0.4)[i] if chosen else None,
                delta_control_nats=0.01 if chosen else None,
            )
        )
    return HeadRanking(
        importance=tuple(importance),
        num_layers=num_layers,
        num_heads=num_heads,
        clean_loss_nats=0.7,
        clean_confirmation_loss_nats=0.8,
        clean_control_loss_nats=None,
        boundary_gap_nats=0.05,
        split_half_overlap=0.5,
        joint=JointAblation(1.2, (0.1, 0.3, 0.2), 0.25),
    )


def make_explanation(num_tokens: int = 9) -> Explanation:
    """Returns a sample whose second token is hostile, and whose first is not looked at."""
    number = num_tokens - 1
    total = number * (number + 1) / 2
    tokens = [
        Token("<|user|>"),
        *(
            Token(HOSTILE if i == 1 else f" word{i}", i / total, 1 / number)
            for i in range(1, number + 1)
        ),
    ]
    variance = sum((i / total - 1 / number) ** 2 for i in range(1, number + 1)) / number
    return Explanation(
        sample_id="abc",
        source=HOSTILE_FILE,
        position=7,
        status="scored",
        reason="in the pool and drawn",
        subset_id="subset",
        scorer="attention",
        reading="attention_variance",
        heads=("0.1", "1.2"),
        standing=Standing(variance, 1, 120, number),
        place=Place("abc", 3, 0.5, 1.25, 0.4, True),
        subsets=("subset",),
        read=ReadTokens(tuple(tokens), variance, is_score=True),
    )


def make_task() -> TaskReport:
    """Returns a task of 40 problems, of which 6 are newly solved and 2 newly lost."""
    before = [Outcome("task", f"doc-{i}", 0, i < 10, False) for i in range(40)]
    after = [Outcome("task", f"doc-{i}", 0, 2 <= i < 16, False) for i in range(40)]
    [base], [checkpoint] = summarise(before), summarise(after)
    [difference], [paired] = compare(before, after), pair_problems(before, after)
    example = AnsweredProblem("doc-10", HOSTILE, HOSTILE, "right")
    return TaskReport(base, checkpoint, difference, paired, (example,), ())
