"""A study's report: verdicts of planted differences, and everything a reader has to be told."""

from dataclasses import replace

import numpy as np
import pytest

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.method.study_report import (
    StudyCell,
    StudyData,
    _finding,
    analyse_study,
    draw_study,
    format_study,
)

SHARES = {"circuitseer": 0.62, "random": 0.50, "full": 0.62, "oracle": 0.75, "length": 0.30}
NUM_SEEDS, NUM_PROBLEMS = 6, 800


def cell_of(method: str, seed: int, pass_at_1: float) -> StudyCell:
    return StudyCell(
        method=method,
        seed=seed,
        subset_id=f"subset-{method}-{seed}",
        pass_at_1=pass_at_1,
        held_out_loss_nats=0.4,
        num_samples=300,
        num_pool=3000,
        num_train_tokens=40_000,
        effective_pool_size=2400.0,
        score_tilt_sd=-0.5,
        random_tilt_sd=0.05,
        num_selection_forwards=3000,
        selection_s=12.0,
        training_s=20.0,
        composition={"is_planted_noise": {"False": 180, "True": 120}},
    )


def make_data(shares: dict[str, float] | None = None, *, with_losses: bool = True) -> StudyData:
    generator = np.random.default_rng(5)
    shares = shares or SHARES
    shape = (NUM_SEEDS, NUM_PROBLEMS)
    correct = {m: (generator.random(shape) < share).astype(float) for m, share in shares.items()}
    losses = {m: generator.normal(1 - share, 0.05, shape) for m, share in shares.items()}
    return StudyData(
        cells={
            m: [cell_of(m, seed, float(row.mean())) for seed, row in enumerate(outcomes)]
            for m, outcomes in correct.items()
        },
        correct=correct,
        loss_nats=losses if with_losses else {m: np.empty((NUM_SEEDS, 0)) for m in shares},
        base_pass_at_1=0.4,
        overlap={("circuitseer", "random"): 0.64},
        pool_composition={"is_planted_noise": {"False": 1800, "True": 1200}},
    )


@pytest.fixture(scope="module")
def data() -> StudyData:
    return make_data()


def test_planted_differences_get_their_verdicts(data: StudyData) -> None:
    analysis = analyse_study(data)
    verdicts = {
        (row.comparison.method, row.comparison.against): row.verdict
        for row in analysis.rows
        if row.endpoint == "pass_at_1"
    }
    assert verdicts["circuitseer", "random"] == "better"
    assert verdicts["circuitseer", "full"] == "undecided"
    assert verdicts["length", "random"] == "worse"
    assert verdicts["oracle", "random"] == "better"


def test_a_lower_loss_counts_as_better(data: StudyData) -> None:
    row = analyse_study(data).find("oracle", "random", "held_out_log_likelihood_nats")
    assert row is not None
    assert row.verdict == "better"
    planted = SHARES["oracle"] - SHARES["random"]
    assert row.comparison.difference == pytest.approx(planted, abs=0.01)


def test_only_the_two_hypotheses_on_pass_at_1_are_primary(data: StudyData) -> None:
    primary = {
        (row.endpoint, row.comparison.method, row.comparison.against)
        for row in analyse_study(data).rows
        if row.comparison.is_primary
    }
    assert primary == {
        ("pass_at_1", "circuitseer", "random"),
        ("pass_at_1", "circuitseer", "full"),
    }


def test_nothing_follows_where_the_oracle_is_not_told_from_random() -> None:
    insensitive = make_data({**SHARES, "oracle": 0.50})
    analysis = analyse_study(insensitive)
    assert {row.verdict for row in analysis.rows if row.endpoint == "pass_at_1"} == {"insensitive"}
    assert "nothing follows from it" in format_study(insensitive, analysis)


def test_the_figure_says_which_pair_has_no_variance_and_what_is_found_of_the_other() -> None:
    data = make_data(SHARES)
    blind = replace(data, correct={**data.correct, "circuitseer": data.correct["random"]})
    assert _finding(analyse_study(blind)).startswith(
        "circuitseer is not compared, for lack of variance, with random and "
    )
    insensitive = analyse_study(make_data({**SHARES, "oracle": 0.50}))
    assert _finding(insensitive) == "No conclusion: the oracle is not told from a random subset"


def test_nothing_follows_where_every_answer_is_wrong() -> None:
    """No variance is no certainty: the study could have seen nothing."""
    blind = make_data({"circuitseer": 0.5, "random": 0.5})
    blind = replace(blind, correct={name: 0 * cells for name, cells in blind.correct.items()})
    analysis = analyse_study(blind)
    row = analysis.find("circuitseer", "random")
    assert row is not None
    assert row.verdict == "insensitive"
    report = format_study(blind, analysis)
    assert "the difference from random shows no variance" in report
    assert "smallest difference" not in report
    assert draw_study(blind, analysis).startswith(b"\x89PNG")
    other = analysis.find("circuitseer", "random", "held_out_log_likelihood_nats")
    assert other is not None
    assert other.verdict != "insensitive"


def test_an_oracle_that_is_worse_than_random_is_no_control_either() -> None:
    assert analyse_study(make_data({**SHARES, "oracle": 0.2})).rows[0].verdict == "insensitive"


def test_the_report_says_when_there_is_no_positive_control() -> None:
    without = make_data({m: share for m, share in SHARES.items() if m != "oracle"})
    assert "No positive control" in format_study(without, analyse_study(without))


def test_a_hypothesis_is_adjusted_also_where_the_other_was_not_run() -> None:
    alone = make_data({m: SHARES[m] for m in ("circuitseer", "random", "oracle")})
    analysis = analyse_study(alone)
    row = analysis.find("circuitseer", "random")
    assert row is not None
    assert row.comparison.p_holm == pytest.approx(min(1.0, 2 * row.comparison.p_value))
    report = format_study(alone, analysis)
    assert "it beats a random subset (primary)" in report
    assert "(Holm)" in report


def test_the_report_has_every_method_claim_and_diagnostic(data: StudyData) -> None:
    report = format_study(data, analyse_study(data))
    for method in SHARES:
        assert f"| {method} |" in report
    assert "| a tenth of the data beats all of it (primary) | circuitseer - full |" in report
    assert "| it beats choosing long samples (exploratory) | circuitseer - length |" in report
    assert report.count("(Holm)") == 3  # both hypotheses as claims, and one of them against random
    assert "| circuitseer - ifd |  |  |  |  |  | not run |" in report
    assert "| the pool | 60.0 % | 40.0 % |" in report
    assert "| circuitseer |  | 0.64 |" in report
    assert "Pass@1 before fine-tuning: 40.0 %" in report


def test_values_of_the_corpus_are_escaped(data: StudyData) -> None:
    hostile = replace(data, pool_composition={"family": {"<b>|": 3000}})
    cells = {
        method: [replace(cell, composition={"family": {"<b>|": 300}}) for cell in of_method]
        for method, of_method in data.cells.items()
    }
    report = format_study(replace(hostile, cells=cells), analyse_study(data))
    assert "<b>" not in report


def test_without_solutions_pass_at_1_is_the_only_endpoint() -> None:
    data = make_data(with_losses=False)
    analysis = analyse_study(data)
    assert {row.endpoint for row in analysis.rows} == {"pass_at_1"}
    assert "| circuitseer |" in format_study(data, analysis)


def test_methods_with_other_problems_are_refused(data: StudyData) -> None:
    correct = {**data.correct, "random": data.correct["random"][:, 1:]}
    with pytest.raises(EvaluationError, match="same two or more seeds and problems"):
        analyse_study(replace(data, correct=correct))


def test_the_figure_is_a_png_and_the_same_each_time(data: StudyData) -> None:
    figure = draw_study(data, analyse_study(data))
    assert figure.startswith(b"\x89PNG")
    assert figure == draw_study(data, analyse_study(data))
