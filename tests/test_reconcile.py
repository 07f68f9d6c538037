"""Change only what changed: what one changed setting computes, what it reuses, what it leaves."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from circuitseer_assets import definitions
from circuitseer_assets.assets.stage import StageRun
from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method import head_ranking, sample_scores
from circuitseer_assets.settings import PROJECT_ROOT
from jobs.plan import Planned, make_plan
from jobs.reconcile import Reconciliation
from jobs.run import PipelineFailedError
from jobs.staleness import asset_graph_of, find_stale
from resources.dead_runs import HOST_TAG
from resources.generation import AnsweringModel
from resources.home import Home
from tests.conftest import SMALL, Reconciled

pytestmark = pytest.mark.long

STAGES = (
    "corpus",
    "probe_set",
    "pool",
    "head_ranking",
    "sample_scores",
    "subset",
    "checkpoint",
    "evaluation",
    "audit",
)
AFTER_SUBSET = ("checkpoint", "evaluation", "audit")
WITH_FORWARDS = {"head_ranking", "sample_scores", "checkpoint", "evaluation", "audit"}
A_CHECK = "a check"


def after(stage: str) -> tuple[str, ...]:
    """Returns the stage and all behind it in the chain."""
    return STAGES[STAGES.index(stage) :]


class Counts:
    """What was really computed; forwards by the stage that was being made."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.forwards: Counter[str] = Counter()
        self.rankings = self.scored = self.optimiser_steps = 0
        self.answers = self.generated_tokens = 0

    def assert_only(self, done: Reconciliation) -> None:
        """Returns if it was what the reconciliation says it computed, and nothing else."""
        computed = set(done.computed)
        assert self.forwards.keys() - {A_CHECK} == computed & WITH_FORWARDS
        # The check of a checkpoint, also of one that was there already, asks it for one token.
        assert self.forwards[A_CHECK] <= 1
        assert self.rankings == ("head_ranking" in computed)
        assert (self.scored > 0) == ("sample_scores" in computed)
        num_steps = done.of("checkpoint", "num_steps") if "checkpoint" in computed else 0
        assert self.optimiser_steps == num_steps
        assert (self.answers > 0) == ("evaluation" in computed)
        most = self.answers * SMALL["evaluation"]["max_new_tokens"]
        assert self.answers <= self.generated_tokens <= most


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    counted = Counts()
    making = A_CHECK
    make, generate = StageRun._make, AnsweringModel._generate
    rank_heads, score_samples = head_ranking.rank_heads, sample_scores.score_samples

    def note_stage(self: StageRun, stage: str, *args: Any) -> Any:
        nonlocal making
        making = stage
        try:
            return make(self, stage, *args)
        finally:
            making = A_CHECK

    def count_ranking(*args: Any, **kwargs: Any) -> Any:
        counted.rankings += 1
        return rank_heads(*args, **kwargs)

    def count_scores(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for result in score_samples(*args, **kwargs):
            counted.scored += 1
            yield result

    def count_tokens(*args: Any, **kwargs: Any) -> list[list[int]]:
        responses = generate(*args, **kwargs)
        counted.answers += len(responses)
        counted.generated_tokens += sum(map(len, responses))
        return responses

    def count_forward(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == "Qwen2Model":
            counted.forwards[making] += 1

    def count_step(*args: Any) -> None:
        counted.optimiser_steps += 1

    monkeypatch.setattr(StageRun, "_make", note_stage)
    monkeypatch.setattr(AnsweringModel, "_generate", count_tokens)
    monkeypatch.setattr(head_ranking, "rank_heads", count_ranking)
    monkeypatch.setattr(sample_scores, "score_samples", count_scores)
    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(count_forward),
        register_optimizer_step_post_hook(count_step),
    ]
    yield counted
    for hook in hooks:
        hook.remove()


Change = Callable[..., Reconciliation]


@pytest.fixture(scope="module")
def home(reconciled: Reconciled) -> Home:
    return reconciled.home


@pytest.fixture(scope="module")
def defs(reconciled: Reconciled) -> dg.Definitions:
    return reconciled.defs


@pytest.fixture(scope="module")
def change(reconciled: Reconciled) -> Change:
    return reconciled.change


@pytest.fixture(scope="module")
def first(reconciled: Reconciled) -> Reconciliation:
    return reconciled.first


def latest_id(asset: str) -> str:
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return str(event.asset_materialization.metadata["artifact_id"].value)


def actions(plan: list[Planned]) -> dict[str, str]:
    return {step.asset: step.action for step in plan}


def reason(reconciled: Reconciled, asset: str, **changes: Any) -> str:
    """Returns why the plan would make an asset under changed settings."""
    reconciled.write(**changes)
    [step] = [s for s in make_plan(reconciled.defs, reconciled.home) if s.asset == asset]
    return step.reason


def test_an_empty_home_gets_one_whole_run(first: Reconciliation) -> None:
    assert len(first.run_ids) == 1
    assert set(first.computed) == set(STAGES)
    assert first.saved_s == 0


def test_nothing_changed_nothing_runs(
    first: Reconciliation, change: Change, counts: Counts, home: Home, defs: dg.Definitions
) -> None:
    again = change()
    assert again.run_ids == () == again.computed == again.reused
    assert set(again.untouched) == set(STAGES)
    assert not counts.forwards
    assert counts.optimiser_steps == counts.generated_tokens == 0
    assert again.saved_s > 1
    assert set(actions(make_plan(defs, home)).values()) == {"fresh"}


MATRIX: dict[str, tuple[dict[str, dict[str, Any]], tuple[str, ...], str]] = {
    "budget": (
        {"selection": {"budget": {"fraction": 0.12}}},
        after("subset"),
        "settings/selection changed",
    ),
    "seed": ({"selection": {"seed": 7}}, after("subset"), "settings/selection changed"),
    "power": ({"selection": {"power": 2.0}}, after("subset"), "settings/selection changed"),
    "score formula": (
        {"scoring": {"reading": "attention_cv2"}},
        after("sample_scores"),
        "settings/scoring changed",
    ),
    "training": ({"training": {"max_steps": 18}}, after("checkpoint"), "settings/training changed"),
    "evaluation": (
        {"evaluation": {"max_problems": 12}},
        after("evaluation"),
        "settings/evaluation changed",
    ),
    "repeats": (
        {"evaluation": {"num_repeats": 2, "temperature": 0.7}},
        after("evaluation"),
        "settings/evaluation changed",
    ),
}


@pytest.mark.parametrize("name", MATRIX)
def test_a_changed_setting_computes_what_lies_downstream_and_going_back_nothing(
    first: Reconciliation,
    change: Change,
    counts: Counts,
    reconciled: Reconciled,
    home: Home,
    defs: dg.Definitions,
    name: str,
) -> None:
    changes, computed, reason = MATRIX[name]
    change()
    counts.start()
    reconciled.write(**changes)
    plan = make_plan(defs, home)
    planned = actions(plan)
    changed_stage = computed[0]
    assert planned[changed_stage] == "compute"
    assert {planned[stage] for stage in computed[1:]} <= {"depends"}
    assert {planned[stage] for stage in STAGES if stage not in computed} == {"fresh"}
    [step] = [step for step in plan if step.asset == changed_stage]
    assert reason in step.reason

    done = change(**changes)
    assert set(done.computed) == set(computed)
    assert set(done.untouched) == set(STAGES) - set(computed)
    counts.assert_only(done)
    num_pool = first.of("pool", "num_samples")
    assert counts.scored == (num_pool if "sample_scores" in computed else 0)
    # The base model answers again only where the questions are others.
    num_models = 2 if changed_stage == "evaluation" else 1
    assert counts.answers == num_models * done.of("evaluation", "num_outcomes")

    counts.start()
    reconciled.write()
    assert {actions(make_plan(defs, home))[stage] for stage in computed} == {"reuse"}
    back = change()
    assert back.computed == ()
    assert set(back.reused) == set(computed)
    counts.assert_only(back)
    for stage in STAGES:
        assert back.of(stage, "artifact_id") == first.of(stage, "artifact_id")


def test_another_base_model_leaves_corpus_and_probes(
    first: Reconciliation,
    change: Change,
    counts: Counts,
    reconciled: Reconciled,
    other_model: Path,
) -> None:
    change()
    changes = {"base_model": {"source": "local", "path": str(other_model)}}
    assert "settings/base_model changed" in reason(reconciled, "head_ranking", **changes)
    counts.start()
    done = change(**changes)
    assert set(done.computed) == set(after("head_ranking"))
    assert set(done.untouched) == {"corpus", "probe_set", "pool"}
    counts.assert_only(done)
    assert counts.scored == first.of("pool", "num_samples")
    assert counts.answers == 2 * done.of("evaluation", "num_outcomes")

    counts.start()
    back = change()
    assert back.computed == ()
    counts.assert_only(back)


def test_new_rows_alone_are_scored_and_the_probes_stay(
    first: Reconciliation, change: Change, counts: Counts, reconciled: Reconciled
) -> None:
    change()
    more = {"corpus": {"num_samples": first.of("corpus", "num_samples") + 4}}
    assert "settings/corpus changed" in reason(reconciled, "corpus", **more)
    counts.start()
    grown = change(**more)
    counts.assert_only(grown)
    assert "head_ranking" in grown.untouched
    assert grown.of("probe_set", "artifact_id") == first.of("probe_set", "artifact_id")
    new = grown.of("pool", "num_samples") - first.of("pool", "num_samples")
    assert 0 < new <= 4
    assert counts.scored == new
    assert grown.of("sample_scores", "num_scored_anew") == new

    counts.start()
    back = change()
    assert back.computed == ()
    counts.assert_only(back)


def test_another_list_of_benchmarks_leaves_the_corpus_as_read(
    first: Reconciliation, change: Change, counts: Counts, reconciled: Reconciled
) -> None:
    change()
    longer = {"decontamination": {"benchmarks": [{"task": "word_problems", "num_problems": 29}]}}
    assert "settings/decontamination changed" in reason(reconciled, "pool", **longer)
    counts.start()
    done = change(**longer)
    counts.assert_only(done)
    assert "corpus" in done.untouched
    assert "pool" in done.computed
    # No sample was like the five new problems: the pool is what it was, and the chain is cut there.
    assert done.of("pool", "num_samples") == first.of("pool", "num_samples")
    assert {"head_ranking", "sample_scores", "subset", "checkpoint"} <= set(done.untouched)
    assert {"evaluation", "audit"} <= set(done.computed)  # five more problems are asked
    assert counts.answers == 2 * done.of("evaluation", "num_outcomes")

    counts.start()
    back = change()
    assert back.computed == ()
    counts.assert_only(back)


def test_a_failed_blocking_check_stops_what_lies_below_also_on_the_next_call(
    first: Reconciliation,
    change: Change,
    monkeypatch: pytest.MonkeyPatch,
    home: Home,
    defs: dg.Definitions,
) -> None:
    change()
    before = first.of("checkpoint", "artifact_id")
    # Fewer rows than the budget: the very thing the check is there to see.
    draw = definitions.subset.draw_subset
    monkeypatch.setattr(
        definitions.subset, "draw_subset", lambda pool, selection: draw(pool, selection).slice(1)
    )
    budget = {"selection": {"budget": {"fraction": 0.14}}}
    with pytest.raises(PipelineFailedError, match="subset_is_the_budget of subset failed"):
        change(**budget)
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(PipelineFailedError, match="subset_is_the_budget of subset failed"):
            change(**budget)
    [step] = [step for step in make_plan(defs, home) if step.asset == "subset"]
    assert "its blocking check subset_is_the_budget failed" in step.reason
    assert latest_id("checkpoint") == before
    assert change().of("checkpoint", "artifact_id") == before  # back to a subset that passes


def test_a_failure_says_what_was_computed_before_it(
    first: Reconciliation,
    change: Change,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    counts: Counts,
) -> None:
    def fail(*args: object) -> None:
        raise SettingsError("training must work, and does not; mend it")

    change()
    monkeypatch.setattr(definitions.checkpoint, "_fine_tune", fail)
    caplog.set_level("INFO", "circuitseer")
    formula = {"scoring": {"reading": "attention_lift"}}
    # Scores and subset are made in runs of their own before the checkpoint's fails.
    with pytest.raises(PipelineFailedError, match="training must work"):
        change(**formula)
    said = "computed before the failure, and kept: "
    assert f"{said}sample_scores, subset" in caplog.messages
    assert counts.scored == first.of("pool", "num_samples")

    caplog.clear()
    with pytest.raises(PipelineFailedError, match="training must work"):
        change(**formula)
    assert not [message for message in caplog.messages if said in message]
    assert counts.scored == first.of("pool", "num_samples")
    change()


def test_lost_files_are_made_again(
    first: Reconciliation, change: Change, home: Home, counts: Counts
) -> None:
    change()
    shutil.rmtree(home.artifacts.folder("head_ranking", first.of("head_ranking", "artifact_id")))
    done = change()
    assert done.computed == ("head_ranking",)
    assert counts.rankings == 1
    assert change().run_ids == ()


def test_a_retrained_checkpoint_is_evaluated_anew(
    first: Reconciliation, change: Change, home: Home, counts: Counts
) -> None:
    change()
    before = Path(first.of("evaluation", "folder")) / "evaluation_outcomes.parquet"
    written = before.stat().st_mtime_ns
    shutil.rmtree(home.folder / "mlartifacts")
    done = change()
    assert set(done.computed) == set(AFTER_SUBSET)
    assert counts.optimiser_steps == done.of("checkpoint", "num_steps")
    after_it = Path(done.of("evaluation", "folder")) / "evaluation_outcomes.parquet"
    assert after_it.stat().st_mtime_ns > written
    rows = home.warehouse.query(
        "select model_digest from evaluation_outcomes where evaluation_id = $id",
        {"id": done.of("evaluation", "artifact_id")},
    )
    stored = pq.read_table(after_it)["model_digest"].to_pylist()
    assert sorted(rows["model_digest"].to_pylist()) == sorted(stored)


def test_latest_means_in_use_not_newest(first: Reconciliation, change: Change, home: Home) -> None:
    change(selection={"budget": {"fraction": 0.13}})
    change()
    exported = subprocess.run(
        [str(Path(sys.executable).with_name("circuitseer")), "export"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "CIRCUITSEER_HOME": str(home.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = Path(exported.stdout.strip()).read_text().splitlines()
    assert len(rows) == first.of("subset", "num_samples")


def test_the_live_ui_says_what_is_stale_and_why_and_makes_it(
    first: Reconciliation,
    change: Change,
    reconciled: Reconciled,
    home: Home,
    defs: dg.Definitions,
    tmp_path: Path,
) -> None:
    change()
    with serving(home, tmp_path / "dagster_dev.log") as address:
        # Nobody observes by hand: the sensor, the only one that is on, sees the file.
        reconciled.write(selection={"seed": 3}, training={"max_steps": 9})
        wait_until(lambda: len(stale_in(address)) == 2)
        with dg.DagsterInstance.get() as instance:
            stale = find_stale(instance, asset_graph_of(defs), home)
        assert {key.to_user_string() for key in stale} == {"subset", "checkpoint"}
        assert stale_in(address) == {
            "subset": ["settings/selection"],
            "checkpoint": ["settings/training"],
        }
        assert launch(address, ["subset"]) == "SUCCESS"
        causes = stale_in(address)
        assert set(causes) == {"checkpoint"}
        assert set(causes["checkpoint"]) == {"settings/training", "subset"}
        # The run is this machine's, and says which process it was, should it be killed.
        with dg.DagsterInstance.get() as instance:
            [latest] = instance.get_runs(limit=1)
        assert latest.tags[HOST_TAG] == socket.gethostname()
    made = latest_id("subset")
    change(selection={"seed": 3})
    assert latest_id("subset") == made
    change()


def stale_in(address: str) -> dict[str, list[str]]:
    """Returns the stages that the UI shows as stale, each with the assets it names as the cause."""
    asked = "{assetNodes{assetKey{path} staleStatus staleCauses{key{path} reason}}}"
    return {
        name: ["/".join(cause["key"]["path"]) for cause in node["staleCauses"]]
        for node in ask(address, asked)["assetNodes"]
        if (name := "/".join(node["assetKey"]["path"])) in STAGES and node["staleStatus"] == "STALE"
    }


def launch(address: str, assets: list[str]) -> str:
    """Returns how a run of these assets ended that the UI launched."""
    asked = "{repositoriesOrError{... on RepositoryConnection{nodes{name location{name}}}}}"
    [repository] = ask(address, asked)["repositoriesOrError"]["nodes"]
    launched = ask(
        address,
        """mutation($run: ExecutionParams!) {launchPipelineExecution(executionParams: $run) {
            __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}""",
        run={
            "mode": "default",
            "selector": {
                "repositoryName": repository["name"],
                "repositoryLocationName": repository["location"]["name"],
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [{"path": [name]} for name in assets],
            },
        },
    )["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    asked = f'{{runOrError(runId: "{run_id}"){{... on Run{{status}}}}}}'
    over = {"SUCCESS", "FAILURE", "CANCELED"}
    wait_until(lambda: ask(address, asked)["runOrError"]["status"] in over)
    return str(ask(address, asked)["runOrError"]["status"])


def wait_until(holds: Callable[[], bool], limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(1)


@contextlib.contextmanager
def serving(home: Home, log: Path) -> Iterator[str]:
    """Yields the address of a `dagster dev` on the home, webserver, code server and daemon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    program = str(Path(sys.executable).with_name("dagster"))
    with log.open("w") as file:
        server = subprocess.Popen(
            [program, "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
            cwd=PROJECT_ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/server_info", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:  # its daemon may be in the midst of a long tick
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def ask(address: str, query: str, **variables: Any) -> Any:
    request = urllib.request.Request(
        f"{address}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        replied = json.load(answer)
    assert "errors" not in replied, replied["errors"]
    return replied["data"]


def test_plan_and_run_agree_about_two_changes_at_once(
    first: Reconciliation, change: Change, reconciled: Reconciled, home: Home, defs: dg.Definitions
) -> None:
    change()
    both = {"selection": {"seed": 11}, "evaluation": {"max_problems": 10}}
    reconciled.write(**both)
    planned = actions(make_plan(defs, home))
    assert planned["subset"] == planned["evaluation"] == "compute"
    assert planned["checkpoint"] == "depends"
    assert all(planned[s] == "fresh" for s in itertools.takewhile(lambda s: s != "subset", STAGES))
    assert set(change(**both).computed) == set(after("subset"))
