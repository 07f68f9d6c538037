"""Scoring on Ray gives what scoring here gives, whatever happens to the workers meanwhile."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from circuitseer_assets.assets.pool_scorer import PoolScorer
from circuitseer_assets.errors import ClusterError, SettingsError
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import HeadId, ModelUse, Sample, SampleScore
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    ExecutionSettings,
    RayExecution,
    ScoringExecution,
    load_settings,
    parse_settings,
)
from resources import ray_cluster, ray_scoring
from resources.home import Home
from resources.language_model import identify_model
from resources.ray_scoring import ScoringJob, ShardScorer, method_version
from resources.sample_files import read_samples, write_samples
from resources.score_shards import ScoredShard, ScoreShards
from tests.conftest import small_settings
from tests.resources.test_pool_scores import (
    reasons_of,
    record_corpus,
    sample_of,
    scores_of,
    write_pool,
)

NUM_SAMPLES, SHARD_SAMPLES = 66, 4
# Some of the problems are longer, and a few are longer than either.
SCORING = {"max_tokens": 120, "long_prompts": "truncate"}


def make_samples() -> list[Sample]:
    """Returns problems of which every tenth is asked twice, with another answer."""
    problems = list(generate_problems(NUM_SAMPLES, split="train", seed=3))
    samples = [sample_of(p.prompt, p.response, i) for i, p in enumerate(problems)]
    twins = [sample_of(p.prompt, f"{p.response} Yes.", 1000 + i) for i, p in enumerate(problems)]
    return [*samples, *twins[::10]]


def make_scorer(folder: Path, **execution: Any) -> PoolScorer:
    """Returns the scorer of a pool in a home of its own."""
    samples = make_samples()
    folder.mkdir()
    write_samples(samples, folder / "samples")
    prompts = {sample.sample_id: sample.prompt_id for sample in samples}
    home = Home(path=str(folder))
    record_corpus(home.warehouse, prompts)
    heads = [{"head": {"layer": 1, "head": h}, "is_reasoning_head": h < 2} for h in range(8)]
    ranking = {"importance": heads, "num_layers": 6, "num_heads": 8}
    (folder / "head_ranking.json").write_text(json.dumps(ranking))
    settings = load_settings(PROJECT_ROOT / "presets" / "tiny.yaml")
    return PoolScorer(
        settings=settings.model_copy(
            update={
                "scoring": settings.scoring.model_copy(update=SCORING),
                "execution": ExecutionSettings(shard_samples=SHARD_SAMPLES, **execution),
            }
        ),
        home=home,
        scorer_id="scorer",
        tokenizer_id="tokenizer",
        ranking=folder,
        pool=write_pool(folder / "pool.parquet", prompts),
        corpus=folder / "samples",
        work=folder / "work" / "scores",
        report_progress=lambda done, total: None,
    )


def on_ray(num_workers: int, address: str | None = None) -> dict[str, Any]:
    scoring = ScoringExecution(backend="ray", num_workers=num_workers)
    return {"scoring": scoring, "ray": RayExecution(address=address)}


def run(scorer: PoolScorer) -> tuple[dict[str, float], dict[str, Any], ModelUse]:
    """Returns the scores, the summary without its picture, and what the model was asked for."""
    out = Path(scorer.home.path) / "out"
    out.mkdir()
    made = scorer.score_pool(out)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    scores = {row["sample_id"]: row["score"] for row in rows}
    assert scores == scores_of(scorer.home.warehouse, scorer.scorer_id)
    assert made.model_use is not None
    return scores, dict(made.summary), made.model_use


def workers() -> list[psutil.Process]:
    """Returns the Ray workers below this process that have loaded a model."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            is_worker = " ".join(process.cmdline()).startswith("ray::MapWorker")
            if is_worker and any("libtorch" in m.path for m in process.memory_maps()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it has ended meanwhile
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What scoring in this process gives, on one thread as a worker."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(make_scorer(tmp_path_factory.mktemp("here") / "home"))
    finally:
        torch.set_num_threads(before)


def assert_same(got: Any, here: Any) -> None:
    assert got[0] == here[0]  # to the last digit
    assert got[1] == here[1]
    assert got[1]["num_truncated_anew"] > 0
    assert got[2].num_forwards == pytest.approx(here[2].num_forwards)
    # Rounded for every shard, not once.
    assert abs(got[2].num_tokens - here[2].num_tokens) <= NUM_SAMPLES // SHARD_SAMPLES + 1


# on a cluster of its own --------------------------------------------------------------------------


@pytest.mark.long
def test_two_workers_give_the_scores_of_one_process(
    tmp_path: Path, here: Any, tell: Callable[..., None]
) -> None:
    seen: set[psutil.Process] = set()
    addresses: set[str] = set()

    def look(done: int, total: int) -> None:
        assert total == NUM_SAMPLES  # one of each prompt
        seen.update(workers())
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = process.net_connections("inet")
                addresses.update(c.laddr.ip for c in connections if c.status == "LISTEN")

    handler, before = signal.getsignal(signal.SIGTERM), set(Path("/tmp").glob("circuitseer-ray-*"))
    scorer = make_scorer(tmp_path / "home", **on_ray(2))
    got = run(dataclasses.replace(scorer, report_progress=look))
    assert_same(got, here)
    assert len(seen) == 2
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not scorer.shards.folder.exists()
    assert set(Path("/tmp").glob("circuitseer-ray-*")) <= before
    _, alive = psutil.wait_procs(seen, timeout=30)
    assert not alive
    tell("scoring on Ray", "two workers", f"{len(got[0])} scores", "equal to the last digit")


# on a running cluster -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A running cluster of two nodes with a CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    except Exception as error:  # Ray raises that very class
        if "timed out during startup" not in str(error):  # half a minute, which cannot be set
            raise
        pytest.skip(f"no Ray cluster started here: {error}")
    try:
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """Returns a new node; Ray gives it half a minute to start, too little on a busy machine."""
    for _ in range(2):
        with contextlib.suppress(Exception):
            return cluster.add_node(num_cpus=1)
    return cluster.add_node(num_cpus=1)


@pytest.mark.long
def test_a_worker_that_is_killed_and_a_node_that_is_lost_change_no_score(
    tmp_path: Path, here: Any, cluster: Any, tell: Callable[..., None]
) -> None:
    lost, faults = add_node(cluster), []

    def disturb(done: int, total: int) -> None:
        if not faults:
            worker = workers()[0]
            worker.send_signal(signal.SIGKILL)
            faults.append("a worker killed")
        elif len(faults) == 1 and done > 3 * SHARD_SAMPLES:
            cluster.remove_node(lost, allow_graceful=False)
            add_node(cluster)
            faults.append("a node lost, another there")

    scorer = make_scorer(tmp_path / "home", **on_ray(2, cluster.address))
    got = run(dataclasses.replace(scorer, report_progress=disturb))
    assert len(faults) == 2
    assert_same(got, here)
    assert not scorer.shards.folder.exists()
    tell("scoring on Ray", "faults", ", ".join(faults), "equal to the last digit")


@pytest.mark.long
def test_more_workers_than_the_cluster_has_room_for_are_refused(
    tmp_path: Path, cluster: Any
) -> None:
    scorer = make_scorer(tmp_path / "home", **on_ray(9, cluster.address))
    with pytest.raises(ClusterError, match=r"num_workers must be at most the \d CPUs .*, got 9;"):
        run(scorer)


@pytest.mark.long
def test_an_address_that_does_not_answer_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_WITHIN_S", 5)
    execution = ExecutionSettings(**on_ray(1, "127.0.0.1:9"))
    said = r"execution\.ray\.address must be that of a running Ray cluster, got '127\.0\.0\.1:9'"
    with pytest.raises(ClusterError, match=said), ray_cluster.open_cluster(execution):
        pass


@pytest.mark.long
def test_a_node_that_nobody_replaces_ends_the_scoring_with_what_is_lacking(
    tmp_path: Path,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ray_scoring, "CHECK_INTERVAL_S", 1.0)
    monkeypatch.setattr(ray_scoring, "REPLACED_WITHIN_S", 3.0)
    num_cpus = len(cluster.list_all_nodes())
    lost = add_node(cluster)

    def lose(done: int, total: int) -> None:
        if lost in cluster.list_all_nodes():
            cluster.remove_node(lost, allow_graceful=False)

    scorer = make_scorer(tmp_path / "home", **on_ray(num_cpus + 1, cluster.address))
    said = rf"num_workers must be at most the {num_cpus} CPUs .*, got {num_cpus + 1}; .* is kept"
    with pytest.raises(ClusterError, match=said):
        run(dataclasses.replace(scorer, report_progress=lose))
    assert "waiting for the Ray cluster, 3 s at most" in caplog.text  # it is not given up at once
    assert list(scorer.shards.scored())


# without a cluster --------------------------------------------------------------------------------


def test_sigterm_while_ray_starts_is_what_it_was_before() -> None:
    def raise_it(number: int, _frame: Any) -> None:
        raise InterruptedError(number)

    def start_ray() -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, raise_it)
    try:
        with pytest.raises(InterruptedError), ray_cluster._own_signals():
            start_ray()
        assert signal.getsignal(signal.SIGTERM) is raise_it
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = r"'ray' only where Ray is installed.*run `uv pip install 'circuitseer\[ray\]'`"
    with (
        pytest.raises(ClusterError, match=said),
        ray_cluster.open_cluster(ExecutionSettings(**on_ray(1))),
    ):
        pass


def test_a_cluster_that_opens_removes_what_killed_drivers_left_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "CLUSTERS", tmp_path)
    driver = (
        "import pathlib, sys; from resources import ray_cluster as r; "
        "r.CLUSTERS = pathlib.Path(sys.argv[1])\nwith r.own_folder(): print(flush=True); input()"
    )
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", driver, str(tmp_path)],
            cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for process in drivers:
            assert process.stdout is not None
            assert process.stdout.readline()
        killed, living = (next(tmp_path.glob(f"*-{process.pid}-*")) for process in drivers)
        # Of an earlier process that had this one's PID; and of another program.
        names = (f"{os.getpid()}-{0:08x}", "mine")
        earlier, other = (tmp_path / f"circuitseer-ray-{name}" for name in names)
        earlier.mkdir()
        other.mkdir()
        assert ray_cluster.find_abandoned() == [earlier]
        drivers[0].kill()
        drivers[0].wait()
        with ray_cluster.own_folder() as own:
            assert set(tmp_path.iterdir()) == {own, living, other}
        drivers[1].communicate(b"\n")
        assert list(tmp_path.iterdir()) == [other]
        assert not killed.exists()
    finally:
        for process in drivers:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        ({"ray": {"address": "http://host"}}, r"ray\.address: must be auto or host:port, got"),
        (
            {"ray": {"address": "ray://head:10001"}},
            r"ray\.address: must not be a Ray Client's, .* Ray Data .*, got 'ray://head:10001'",
        ),
        ({"scoring": {"gpus_per_worker": 1.5}}, r"must be a whole number, or a part of one GPU"),
        ({"scoring": {"num_workers": 0}}, r"execution\.scoring\.num_workers.*got 0"),
        ({"scoring": {"backend": "dask"}}, r"execution\.scoring\.backend.*got 'dask'"),
    ],
)
def test_settings_that_cannot_be_are_refused(execution: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_settings({**small_settings(), "execution": execution}, origin="settings.yaml")


def test_finished_shards_of_a_run_that_died_are_taken_over_and_torn_ones_are_not(
    tmp_path: Path, here: Any
) -> None:
    scorer = make_scorer(tmp_path / "home")
    samples = list(read_samples(scorer.corpus))
    whole, torn = samples[:SHARD_SAMPLES], samples[SHARD_SAMPLES : 2 * SHARD_SAMPLES]
    # Scores that no model gives: where they are found, nobody has scored again.
    names = scorer.shards.write_samples([whole, torn])
    for name, shard in zip(names, (whole, torn), strict=True):
        scores = [SampleScore(sample.sample_id, 1e9, 1) for sample in shard]
        scorer.shards.write_scores(name, ScoredShard(scores, ModelUse()))
    [file] = scorer.shards.folder.glob(f"{names[1]}/scores/scores.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    got, summary, _ = run(scorer)
    taken = {sample.sample_id for sample in samples if got[sample.sample_id] == 1e9}
    prompts = {sample.prompt_id for sample in whole}
    assert taken == {sample.sample_id for sample in samples if sample.prompt_id in prompts}
    assert {i: s for i, s in got.items() if i not in taken} == pytest.approx(
        {i: s for i, s in here[0].items() if i not in taken}, rel=1e-5
    )
    assert summary["num_scored_anew"] == len(samples) - len(taken)
    assert not scorer.shards.folder.exists()


def test_a_scorer_that_compares_samples_runs_here_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = make_scorer(tmp_path / "home", **on_ray(2, "127.0.0.1:9"))
    scoring = scorer.settings.scoring.model_copy(update={"scorer": "diversity"})
    with caplog.at_level(logging.INFO, logger="circuitseer"):
        settings = scorer.settings.model_copy(update={"scoring": scoring})
        scores, _, _ = run(dataclasses.replace(scorer, settings=settings))
    left_out = reasons_of(scorer.home.warehouse, scorer.scorer_id)
    assert {*scores, *left_out} == {sample.sample_id for sample in make_samples()}
    assert "the scorer diversity compares samples with each other" in caplog.text


# what a worker refuses ----------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> ScoringJob:
    """A job of one shard, as a worker gets it."""
    settings = load_settings(PROJECT_ROOT / "presets" / "tiny.yaml")
    ScoreShards(tmp_path / "shards").write_samples([make_samples()[:SHARD_SAMPLES]])
    return ScoringJob(
        base_model=settings.base_model,
        scoring=settings.scoring,
        heads=(HeadId(1, 0),),
        max_batch_tokens=4096,
        models=tmp_path / "models",
        shards=tmp_path / "shards",
        identity=identify_model(settings.base_model, cache=tmp_path / "models"),
        method_version=method_version(),
        gpus_per_worker=0.0,
    )


def name_of(job: ScoringJob) -> str:
    [path] = job.shards.glob("*/samples")
    return path.parent.name


def refusal_of(job: ScoringJob) -> tuple[str, str]:
    name = name_of(job)
    row = ShardScorer(job)({"item": np.array([name])})
    assert row["name"] == [name]
    return row["refusal"][0], row["message"][0]


def test_a_worker_writes_its_shard_whole(job: ScoringJob) -> None:
    assert refusal_of(job) == ("", "")
    shards, name = ScoreShards(job.shards), name_of(job)
    assert list(shards.scored()) == [name]
    shard, samples = shards.read_scores(name), shards.read_samples(name)
    assert {r.sample_id for r in shard.results} == {s.sample_id for s in samples}
    assert shard.model_use.num_tokens > 0


def test_a_worker_refuses_a_torn_shard(job: ScoringJob) -> None:
    [file] = job.shards.glob("*/samples/*.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    refusal, message = refusal_of(job)
    assert refusal == "ArtifactError"
    assert "bytes, got" in message
    assert list(ScoreShards(job.shards).scored()) == []


def test_a_worker_refuses_where_the_shards_are_not_seen(job: ScoringJob, tmp_path: Path) -> None:
    worker = ShardScorer(dataclasses.replace(job, shards=tmp_path / "elsewhere"))
    row = worker({"item": np.array([name_of(job)])})
    [refusal], [message] = row["refusal"], row["message"]
    assert refusal == "ClusterError"
    assert "every node of the Ray cluster must see" in message


def test_a_worker_without_a_gpu_loads_onto_none(
    job: ScoringJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_scoring, "resolve_device", lambda settings: torch.device("cuda:0"))
    refusal, message = refusal_of(job)
    assert refusal == "SettingsError"
    assert "gpus_per_worker must be above 0 where base_model.device (auto) is a GPU" in message
    assert refusal_of(dataclasses.replace(job, gpus_per_worker=0.5)) == ("", "")


def test_a_worker_with_other_code_or_another_model_refuses(job: ScoringJob) -> None:
    other = dataclasses.replace(job.identity, model_digest="0" * 16)
    for wrong in ({"method_version": "0" * 16}, {"identity": other}):
        refusal, message = refusal_of(dataclasses.replace(job, **wrong))
        assert refusal == "ClusterError"
        assert "must have the base model and the code of the driver" in message
