"""Scoring on Ray: shards of samples go through a pool of actors that each hold the model.

One Ray Data job maps the names of shards to scored shards. Only names pass through Ray; samples and
scores lie in files under one folder, which every node has to see.
"""

import logging
import platform
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitseer_assets import errors
from circuitseer_assets.errors import CircuitSeerError, ClusterError, SettingsError
from circuitseer_assets.method.scorers import find_scorer
from circuitseer_assets.records import HeadId
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    BaseModelSettings,
    ExecutionSettings,
    ScoringSettings,
)
from resources.artifacts import data_version_of
from resources.language_model import (
    LanguageModel,
    ModelIdentity,
    load_language_model,
    resolve_device,
)
from resources.ray_cluster import ensure_room, last_line, open_cluster
from resources.score_shards import ScoredShard, ScoreShards

log = logging.getLogger("circuitseer")
# A worker that dies is started again, and its shard read again; one that always dies is not.
MAX_RESTARTS = 3
CHECK_INTERVAL_S = 15.0
REPLACED_WITHIN_S = 600.0  # a cloud's machine and the image on it take minutes to be there


@dataclass(frozen=True)
class ScoringJob:
    """All a worker needs to score a shard as the driver would.

    A worker whose model is not of this `identity`, or whose code is of another version, refuses.
    """

    base_model: BaseModelSettings
    scoring: ScoringSettings
    heads: tuple[HeadId, ...]
    max_batch_tokens: int
    models: Path
    shards: Path
    identity: ModelIdentity
    method_version: str
    gpus_per_worker: float


def method_version() -> str:
    """Returns a digest of the method's code as it is here."""
    folder = PROJECT_ROOT / "circuitseer_assets" / "method"
    return data_version_of(folder, [path.name for path in folder.glob("*.py")])


def score_on_ray(
    job: ScoringJob, names: Sequence[str], execution: ExecutionSettings
) -> Generator[ScoredShard, None, None]:
    """Returns the shards' scores as they are finished, in any order.

    Raises:
        ClusterError: no cluster, or a cluster that lost its workers or the room for them.
        CircuitSeerError: what a worker refused, as it said it.
    """
    shards = ScoreShards(job.shards)
    with open_cluster(execution):
        for row in _rows(job, names, execution):
            if row["refusal"]:
                raise getattr(errors, row["refusal"])(row["message"])
            yield shards.read_scores(row["name"])


def _rows(
    job: ScoringJob, names: Sequence[str], execution: ExecutionSettings
) -> Iterator[dict[str, str]]:
    """Returns what workers say of each shard, and looks meanwhile whether there is room for them.

    Of itself Ray waits half an hour for a node that is lost to be replaced, and does not say for
    what.
    """
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            for row in _dataset(job, names, execution).iter_rows():
                finished.put(row)
            finished.put(None)
        except BaseException as error:  # it is raised where the rows are waited for
            finished.put(error)

    threading.Thread(target=work, name="ray-scoring", daemon=True).start()
    last_sign = time.monotonic()  # of a row, or of room for all workers
    while True:
        try:
            row = finished.get(timeout=CHECK_INTERVAL_S)
            last_sign = time.monotonic()
        except queue.Empty:
            try:
                ensure_room(execution)
                last_sign = time.monotonic()
            except ClusterError as error:
                if time.monotonic() - last_sign > REPLACED_WITHIN_S:
                    raise
                log.warning(
                    "waiting for the Ray cluster, %.0f s at most: %s", REPLACED_WITHIN_S, error
                )
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise ClusterError(
                f"scoring on Ray must go through without a fault, and was given up "
                f"({type(row).__name__}: {last_line(str(row))}); a worker that dies, as for want "
                f"of memory, is started {MAX_RESTARTS} times again; mend it and run again: what is "
                f"scored is kept"
            ) from row
        yield row


def _dataset(job: ScoringJob, names: Sequence[str], execution: ExecutionSettings) -> Any:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = MAX_RESTARTS
    # A block a shard: a shard counts as soon as it is scored, and is all that a dead worker loses.
    return ray.data.from_items(list(names), override_num_blocks=len(names)).map_batches(
        ShardScorer,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=execution.scoring.num_workers),
        num_cpus=1,
        num_gpus=execution.scoring.gpus_per_worker,
        # How often a shard is handed out again has no bound of its own (Ray Data's default): of a
        # worker that is being started again Ray may be told "unavailable" any number of times.
        max_restarts=MAX_RESTARTS,
    )


class ShardScorer:
    """An actor of the pool: holds the model, and scores one shard at a call."""

    def __init__(self, job: ScoringJob) -> None:
        self._job = job
        self._shards = ScoreShards(job.shards)
        self._base_model: LanguageModel | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Returns the shard's name, and what is refused of it: the error's name and message."""
        [name] = batch["item"].tolist()
        refusal = message = ""
        try:
            self._score(name)
        except CircuitSeerError as error:
            # As a value: Ray would wrap it in traces, and start the worker again.
            refusal, message = type(error).__name__, str(error)
        return {"name": [name], "refusal": [refusal], "message": [message]}

    def _score(self, name: str) -> None:
        from circuitseer_assets.method.forwards import count_forwards

        if not self._job.shards.is_dir():
            raise ClusterError(
                f"every node of the Ray cluster must see {self._job.shards}, and {platform.node()} "
                f"does not; make the home's folder `work` a link to storage that all nodes mount "
                f"at the same path"
            )
        samples = self._shards.read_samples(name)
        base_model = self._load()
        reader = base_model.reader(self._job.heads, max_batch_tokens=self._job.max_batch_tokens)
        score = find_scorer(self._job.scoring).load()
        with count_forwards(base_model.model) as counted:
            results = list(score(reader, samples, self._job.scoring))
        self._shards.write_scores(name, ScoredShard(results, counted.use))

    def _ensure_gpu(self) -> None:
        # Ray hides no GPU from a worker that has none: all of them would load onto the first.
        device = resolve_device(self._job.base_model)
        if device.type == "cuda" and not self._job.gpus_per_worker:
            raise SettingsError(
                f"execution.scoring.gpus_per_worker must be above 0 where base_model.device "
                f"({self._job.base_model.device}) is a GPU, as on {platform.node()}, got 0; set it "
                f"to the GPUs, or the part of one, that a worker gets, or base_model.device to cpu"
            )

    def _load(self) -> LanguageModel:
        """Returns the model, loaded with the first shard: what is wrong with it is a refusal."""
        if self._base_model is None:
            self._ensure_gpu()
            loaded = load_language_model(self._job.base_model, cache=self._job.models)
            here, wanted = (
                (loaded.identity, method_version()),
                (self._job.identity, self._job.method_version),
            )
            if here != wanted:
                raise ClusterError(
                    f"every node of the Ray cluster must have the base model and the code of the "
                    f"driver, {wanted}, and {platform.node()} has {here}; bring the same model "
                    f"and the same version of CircuitSeer there"
                )
            self._base_model = loaded
        return self._base_model
