"""The asset checks: what is sound passes, and each planted violation is told of and blocks."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from circuitseer_assets import checks
from circuitseer_assets.method.weights import weigh_samples
from circuitseer_assets.records import Artifact, Message, Problem, Sample
from circuitseer_assets.settings import PROJECT_ROOT, Benchmark, SelectionSettings
from resources.benchmarks import load_problems
from resources.draw import draw_subset
from resources.home import Home
from resources.sample_files import write_samples

TINY = PROJECT_ROOT / "models/tiny"
BENCHMARK = {"task": "word_problems", "num_problems": 4}
SCORER = "scorer"
IDS = tuple(f"s{number:02d}" for number in range(20))
SCORES = {sample_id: 0.5 + number / 10 for number, sample_id in enumerate(IDS)}
TOKENS = {sample_id: 10 + 7 * number % 13 for number, sample_id in enumerate(IDS)}


class Workplace:
    """A home and a Dagster instance, and artifacts put into both as the stages do."""

    def __init__(self, home: Home, instance: dg.DagsterInstance) -> None:
        self.home, self.instance = home, instance
        self.latest: dict[str, str] = {}
        self._numbers = itertools.count()

    def put(
        self,
        stage: str,
        write: Callable[[Path], Any],
        *,
        parents: Iterable[str] = (),
        settings: Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> None:
        artifact_id = f"{stage}-{next(self._numbers)}"
        with self.home.artifacts.write(stage, artifact_id) as folder:
            write(folder)
        self.home.warehouse.record(
            Artifact(
                artifact_id=artifact_id,
                stage=stage,
                data_version="v1",
                parents=tuple(self.latest[parent] for parent in parents),
                settings=settings or {},
                code_version="1",
            )
        )
        self.latest[stage] = artifact_id
        self.report(stage, artifact_id=artifact_id, **metadata)

    def report(self, asset: str, **metadata: Any) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key=asset, metadata=metadata)
        )

    def evaluate(self, check: Any) -> dg.AssetCheckResult:
        context = dg.build_asset_check_context(instance=self.instance)
        return check(context, home=self.home)


def new_home(folder: Path) -> Home:
    values = yaml.safe_load((PROJECT_ROOT / "presets/tiny.yaml").read_text())
    values["decontamination"] = {"benchmarks": [BENCHMARK]}
    home = Home.prepared(folder)
    (folder / "settings.yaml").write_text(yaml.safe_dump(values))
    return home


@pytest.fixture
def place(tmp_path: Path) -> Iterable[Workplace]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Workplace(new_home(tmp_path), instance)


def fails(result: dg.AssetCheckResult, *parts: str) -> bool:
    assert result.severity == dg.AssetCheckSeverity.ERROR
    for part in parts:
        assert part in str(result.description)
    return not result.passed


def put_pool(place: Workplace, sample_ids: Iterable[str] = IDS) -> None:
    pool = pa.table({"sample_id": sorted(sample_ids)})
    place.put("pool", lambda folder: pq.write_table(pool, folder / "pool.parquet"))


def score_rows(scores: Iterable[tuple[str, float]]) -> pa.Table:
    rows = [
        {"sample_id": i, "score": score, "num_prompt_tokens": 9, "num_tokens": TOKENS.get(i, 10)}
        for i, score in scores
    ]
    return pa.Table.from_pylist(rows)


def put_scores(
    place: Workplace,
    scores: Iterable[tuple[str, float]] = tuple(SCORES.items()),
    *,
    scorer: str = "attention",
    **metadata: Any,
) -> None:
    if "pool" not in place.latest:
        put_pool(place)
    place.put(
        "sample_scores",
        lambda folder: pq.write_table(score_rows(scores), folder / "scores.parquet"),
        parents=["pool"],
        settings={"scorer_id": SCORER, "scoring": {"scorer": scorer}},
        **metadata,
    )


# scores -------------------------------------------------------------------------------------------


def test_finite_scores_that_differ_pass(place: Workplace) -> None:
    put_scores(place)
    assert place.evaluate(checks.scores_are_finite_and_differ).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_fails(place: Workplace, bad: float) -> None:
    put_scores(place, [*SCORES.items(), ("bad", bad)])
    result = place.evaluate(checks.scores_are_finite_and_differ)
    assert fails(result, "1 of 21 scores are not finite")


def test_constant_scores_fail(place: Workplace) -> None:
    put_scores(place, [(sample_id, 0.25) for sample_id in IDS])
    assert fails(place.evaluate(checks.scores_are_finite_and_differ), "all scores are equal")


def test_constant_scores_pass_where_the_draw_alone_is_to_decide(place: Workplace) -> None:
    put_scores(place, [(sample_id, 1.0) for sample_id in IDS], scorer="random")
    assert place.evaluate(checks.scores_are_finite_and_differ).passed


def explain(place: Workplace, *sample_ids: str, scorer_id: str = SCORER) -> None:
    reasons = {"reason": "too_short", "detail": "3 tokens"}
    unscored = pa.Table.from_pylist([{"sample_id": i, **reasons} for i in sample_ids])
    scored = score_rows(SCORES.items()).select(["sample_id", "score", "num_tokens"]).slice(0, 0)
    place.home.warehouse.append_scores(scorer_id, scored, unscored)


def test_every_sample_scored_or_explained_passes(place: Workplace) -> None:
    put_scores(place, [(i, s) for i, s in SCORES.items() if i not in IDS[:2]])
    explain(place, *IDS[:2])
    result = place.evaluate(checks.one_score_a_sample)
    assert result.passed
    assert result.description == (
        "of 20 pool samples 0 have more than one score, 2 have none and a reason, 0 have neither"
    )


def test_a_missing_score_fails_and_reasons_of_others_are_none(place: Workplace) -> None:
    put_scores(place, [(i, s) for i, s in SCORES.items() if i not in IDS[:2]])
    explain(place, IDS[0], "elsewhere", "another pool's", IDS[7])
    explain(place, IDS[1], scorer_id="another scorer")
    result = place.evaluate(checks.one_score_a_sample)
    assert fails(result, "1 have none and a reason, 1 have neither, among them s01")


def test_a_sample_scored_twice_fails(place: Workplace) -> None:
    put_scores(place, [*SCORES.items(), (IDS[3], 0.1), (IDS[3], 0.2), (IDS[4], 0.1)])
    assert fails(place.evaluate(checks.one_score_a_sample), "2 have more than one score")


def test_scores_are_compared_with_the_pool_they_were_made_from(place: Workplace) -> None:
    put_scores(place)
    put_pool(place, [*IDS, "came later"])
    assert place.evaluate(checks.one_score_a_sample).passed


# subset -------------------------------------------------------------------------------------------


def draw(**selection: Any) -> tuple[SelectionSettings, list[str]]:
    settings = SelectionSettings.model_validate(selection)
    drawn = draw_subset(weigh_samples(score_rows(SCORES.items()), settings), settings)
    return settings, drawn["sample_id"].to_pylist()


def put_subset(place: Workplace, settings: SelectionSettings, members: Iterable[str]) -> None:
    if "sample_scores" not in place.latest:
        put_scores(place)
    table = pa.table({"sample_id": pa.array(members, pa.string())})
    place.put(
        "subset",
        lambda folder: pq.write_table(table, folder / "subset_members.parquet"),
        parents=["sample_scores"],
        settings={"selection": settings.model_dump(mode="json")},
    )


@pytest.mark.parametrize("budget", [{"samples": 7}, {"fraction": 0.275}, {"tokens": 100}])
def test_what_the_draw_gives_is_the_budget(place: Workplace, budget: dict[str, Any]) -> None:
    put_subset(place, *draw(budget=budget))
    result = place.evaluate(checks.subset_is_the_budget)
    assert result.passed, result.description


@pytest.mark.parametrize("budget", [{"samples": 7}, {"fraction": 0.35}])
def test_one_sample_less_or_more_than_the_budget_fails(
    place: Workplace, budget: dict[str, Any]
) -> None:
    settings, members = draw(budget=budget)
    more = next(i for i in IDS if i not in members)
    for wrong in (members[:-1], [*members, more]):
        put_subset(place, settings, wrong)
        result = place.evaluate(checks.subset_is_the_budget)
        assert fails(result, f"{len(wrong)} rows", "the budget is 7 samples")


def test_a_member_twice_or_from_elsewhere_fails(place: Workplace) -> None:
    settings, members = draw(budget={"samples": 7})
    put_subset(place, settings, [*members[:-1], members[0]])
    assert fails(place.evaluate(checks.subset_is_the_budget), "7 rows, 6 samples, 7 of the rows")
    put_subset(place, settings, [*members[:-1], "foreign"])
    assert fails(place.evaluate(checks.subset_is_the_budget), "7 samples, 6 of the rows from the")


def test_an_empty_subset_fails(place: Workplace) -> None:
    put_subset(place, draw(budget={"samples": 7})[0], [])
    assert fails(place.evaluate(checks.subset_is_the_budget), "0 rows")


def test_a_token_budget_left_open_swapped_or_overrun_fails(place: Workplace) -> None:
    settings, members = draw(budget={"tokens": 100})
    put_subset(place, settings, members[:-1])
    result = place.evaluate(checks.subset_is_the_budget)
    assert fails(result, "of which 1 are not in the subset, and 0 of the subset")
    small = min((i for i in IDS if i not in members), key=TOKENS.__getitem__)
    put_subset(place, settings, [*members[:-1], small])
    assert fails(place.evaluate(checks.subset_is_the_budget), "and 1 of the subset are not among")
    put_subset(place, settings, IDS)
    result = place.evaluate(checks.subset_is_the_budget)
    assert fails(result, f"{sum(TOKENS.values())} tokens; the budget is 100 tokens")


def test_a_token_budget_with_debias_is_an_upper_bound_and_says_so(place: Workplace) -> None:
    debiased = SelectionSettings.model_validate({"budget": {"tokens": 100}, "debias": "length"})
    put_subset(place, debiased, IDS[:2])
    result = place.evaluate(checks.subset_is_the_budget)
    assert result.passed
    assert "is not checked with debias length" in str(result.description)
    put_subset(place, debiased, IDS)
    assert fails(place.evaluate(checks.subset_is_the_budget))


# benchmark problems -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """One problem of the benchmark that the settings list."""
    benchmark = Benchmark.model_validate(BENCHMARK)
    return load_problems(benchmark, folder=tmp_path_factory.mktemp("benchmarks"))[0]


def sample(sample_id: str, prompt: str | None = None) -> Sample:
    messages = (Message("user", prompt or f"What is {sample_id} plus one?"),)
    return Sample(sample_id, f"prompt of {sample_id}", "x.jsonl", 0, messages, "One more.")


def put_corpus(place: Workplace, **prompts: str) -> None:
    """Puts a corpus of a pool and three kinds of probes, in which `prompts` are planted."""
    pool = [sample(i, prompts.get("pool") if i == IDS[0] else None) for i in IDS]
    outside = sample("contaminated, and left out of the pool", prompts.get("outside"))
    place.put("corpus", lambda folder: write_samples([*pool, outside], folder / "samples"))

    def write_probes(folder: Path) -> None:
        for kind in ("ranking", "confirmation", "control"):
            if kind != "control" or kind in prompts:
                write_samples([sample(kind, prompts.get(kind)), sample("z")], folder / kind)

    place.put("probe_set", write_probes)
    put_pool(place)


def test_a_clean_pool_passes_though_the_corpus_is_not_clean(
    place: Workplace, problem: Problem
) -> None:
    put_corpus(place, outside=problem.prompt)
    result = place.evaluate(checks.no_benchmark_problem_in_pool_or_probes)
    assert result.passed
    assert "4 problems compared" in str(result.description)
    assert "control" not in str(result.description)


@pytest.mark.parametrize("where", ["pool", "ranking", "confirmation", "control"])
def test_a_planted_problem_fails(place: Workplace, problem: Problem, where: str) -> None:
    put_corpus(place, **{"control": "", where: problem.prompt})
    result = place.evaluate(checks.no_benchmark_problem_in_pool_or_probes)
    name = where if where == "pool" else f"{where} probes"
    assert fails(result, f"1 in the {name}")
    assert str(result.description).count(" 0 in the ") == 3


# checkpoint ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """A home with a checkpoint in MLflow, and the checkpoint's URI."""
    home = new_home(tmp_path_factory.mktemp("trained"))
    with home.tracking().run("checkpoint-1") as run:
        return home, run.log_checkpoint(TINY)


def test_a_checkpoint_is_fetched_loaded_and_its_loss_compared(trained: tuple[Home, str]) -> None:
    home, uri = trained
    with dg.DagsterInstance.ephemeral() as instance:
        place = Workplace(home, instance)
        place.report("checkpoint", first_loss_nats=2.0, final_loss_nats=1.0, mlflow_model_uri=uri)
        result = place.evaluate(checks.checkpoint_loads_and_its_loss_fell)
        assert result.passed, result.description
        for final in (2.5, 2.0, math.nan):
            losses = {"first_loss_nats": 2.0, "final_loss_nats": final}
            place.report("checkpoint", **losses, mlflow_model_uri=uri)
            result = place.evaluate(checks.checkpoint_loads_and_its_loss_fell)
            assert fails(result, f"from 2.0000 to {final:.4f}", "the model loads whole")
        weights = next(home.tracking().model_folder(uri).glob("*.safetensors"))
        tensors = load_file(weights)
        next(iter(tensors.values())).fill_(math.nan)
        save_file(tensors, weights, metadata={"format": "pt"})
        place.report("checkpoint", first_loss_nats=2.0, final_loss_nats=1.0, mlflow_model_uri=uri)
        result = place.evaluate(checks.checkpoint_loads_and_its_loss_fell)
        assert fails(result, "1 tensors hold values that are not finite")


# warnings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correlation", "passed"), [(0.59, True), (0.61, False), (-0.61, False), (None, True)]
)
def test_a_score_that_follows_length_is_warned_of(
    place: Workplace, correlation: float | None, passed: bool
) -> None:
    said = {} if correlation is None else {"score_length_spearman": correlation}
    put_scores(place, **said)
    result = place.evaluate(checks.score_is_not_length)
    assert result.passed == passed
    assert passed or result.severity == dg.AssetCheckSeverity.WARN
    assert passed or "+0.61" in str(result.description) or "-0.61" in str(result.description)


def test_unconfirmed_heads_are_warned_of_by_name(place: Workplace) -> None:
    place.report("head_ranking", unconfirmed_heads=["1.2", "3.0"], num_reasoning_heads=5)
    result = place.evaluate(checks.reasoning_heads_are_confirmed)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "2 of 5 chosen heads" in str(result.description)
    assert "1.2, 3.0" in str(result.description)
    place.report("head_ranking", unconfirmed_heads=[], num_reasoning_heads=5)
    assert place.evaluate(checks.reasoning_heads_are_confirmed).passed


# blocking -----------------------------------------------------------------------------------------


def run_until_subset(place: Workplace, check: Any, **scored: Any) -> tuple[Any, bool]:
    """Returns the check's result in a real run, and whether what comes after was made."""
    put_scores(place, **scored)
    metadata = {"artifact_id": place.latest["sample_scores"], "score_length_spearman": 0.9}

    @dg.asset
    def sample_scores() -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult(metadata=metadata)

    @dg.asset(deps=[sample_scores])
    def subset() -> None: ...

    run = dg.materialize(
        [sample_scores, subset, check],
        instance=place.instance,
        resources={"home": place.home},
        raise_on_error=False,
    )
    [evaluation] = run.get_asset_check_evaluations()
    return evaluation, bool(run.asset_materializations_for_node("subset"))


def test_a_failed_blocking_check_keeps_the_next_stage_from_starting(place: Workplace) -> None:
    constant = [(sample_id, 0.25) for sample_id in IDS]
    check = checks.scores_are_finite_and_differ
    evaluation, went_on = run_until_subset(place, check, scores=constant)
    assert (evaluation.passed, went_on) == (False, False)


def test_a_warning_lets_the_next_stage_start(place: Workplace) -> None:
    evaluation, went_on = run_until_subset(place, checks.score_is_not_length)
    assert (evaluation.passed, went_on) == (False, True)


def test_every_check_but_the_two_warnings_blocks() -> None:
    found = dg.load_asset_checks_from_modules([checks])
    blocking = {spec.name: spec.blocking for check in found for spec in check.check_specs}
    assert {name for name, blocks in blocking.items() if not blocks} == {
        "score_is_not_length",
        "reasoning_heads_are_confirmed",
    }


def test_an_asset_never_materialised_cannot_be_checked(place: Workplace) -> None:
    with pytest.raises(dg.Failure, match="sample_scores must be materialised before it is checked"):
        place.evaluate(checks.scores_are_finite_and_differ)
