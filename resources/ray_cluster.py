"""Ray: a running cluster that the settings name, or one of this machine for the time it takes.

Nothing here is imported with the graph: Ray is an optional extra, and takes seconds to load.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from circuitseer_assets.errors import ClusterError
from circuitseer_assets.records import digest_of
from circuitseer_assets.settings import ExecutionSettings, ScoringExecution
from resources.processes import is_running, start_of

ANSWER_WITHIN_S = 30
START_WITHIN_S = 30  # Ray's own, which cannot be set: on a busy machine it may be too short
NUM_STARTS = 3
# Short, for sockets lie below: their paths have 107 characters at most. A folder's name tells whose
# it is, for a driver that is killed leaves it: the process's PID and a digest of its start.
CLUSTERS, _PREFIX = Path("/tmp"), "circuitseer-ray-"
log = logging.getLogger("circuitseer")
# What travels through Ray are names of files; Ray refuses less than 75 MiB.
_OBJECT_STORE_BYTES = 100 * 2**20


@contextlib.contextmanager
def open_cluster(execution: ExecutionSettings) -> Iterator[None]:
    """Returns a context in which Ray is connected to a cluster with room for the workers.

    A cluster of our own listens on loopback only, has no dashboard, and leaves no file behind.

    Raises:
        ClusterError: Ray is not installed, the address does not answer within half a minute, or the
            cluster is too small.
    """
    address, num_workers = execution.ray.address, execution.scoring.num_workers
    # Read when Ray is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Or what Ray still has at work when we disconnect starts a cluster for itself.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if address is None:
        # Makes this machine's address loopback, and Ray's servers then listen nowhere else; of a
        # cluster elsewhere that would be wrong.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(
            f"execution.scoring.backend can be 'ray' only where Ray is installed, and it is not "
            f"({error}); run `uv pip install 'circuitseer[ray]'`, or set it to 'local'"
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        place: dict[str, Any]
        if address is not None:
            ensure_answers(address)
            place = {"address": address}
        else:
            place = {
                "address": "local",
                "num_cpus": num_workers,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": str(stack.enter_context(own_folder())),
            }
        stack.callback(ray.shutdown)
        _connect(place | quiet)
        ensure_room(execution)
        yield


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Returns a context with a folder for a cluster, after removing what dead drivers left."""
    pid = os.getpid()
    folder = CLUSTERS / f"{_PREFIX}{pid}-{_digest_of_start(pid)}"
    for left in (folder, *find_abandoned()):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_abandoned() -> list[Path]:
    """Returns the folders of clusters whose driver, a process of this user, died and left them."""
    left = []
    for folder in sorted(CLUSTERS.glob(f"{_PREFIX}*")):
        named = re.fullmatch(rf"{_PREFIX}(\d{{1,7}})-([0-9a-f]{{8}})?", folder.name)
        if named is None or not os.access(folder, os.W_OK):
            continue
        pid, start = int(named[1]), named[2]
        # An unknown start decides nothing.
        is_driver = is_running(pid) and (not start or _digest_of_start(pid) in ("", start))
        if not is_driver:
            left.append(folder)
    return left


def _digest_of_start(pid: int) -> str:
    start = start_of(pid)
    return digest_of(start)[:8] if start else ""


def _connect(place: dict[str, Any]) -> None:
    """Returns when Ray is connected; a cluster of this machine that is slow to start is tried anew.

    Raises:
        ClusterError: it cannot be.
    """
    import ray

    is_own = place["address"] == "local"
    for attempt in range(1, (NUM_STARTS if is_own else 1) + 1):
        try:
            with _own_signals():
                ray.init(**place)
            return
        except Exception as error:  # Ray raises that very class where a server does not come up
            ray.shutdown()
            if not is_own:
                raise _no_answer(place["address"], str(error)) from error
            if attempt == NUM_STARTS:
                raise ClusterError(
                    f"a Ray cluster of this machine must start within {START_WITHIN_S} s, and did "
                    f"not in {NUM_STARTS} attempts ({last_line(str(error))}); run again when the "
                    f"machine is less busy, or set execution.scoring.backend to 'local'"
                ) from error
            log.warning("Ray did not start within %d s: once more", START_WITHIN_S)


def ensure_room(execution: ExecutionSettings) -> None:
    """Returns when the cluster, whoever else works on it, is large enough for the workers.

    Raises:
        ClusterError: it is too small, or has become so, or does not say.
    """
    import ray

    resources_of_cluster: Any = ray.cluster_resources
    try:
        there = resources_of_cluster()
    except Exception as error:  # Ray has no class of its own for a head that does not answer
        raise ClusterError(
            f"the Ray cluster must say what it has, and did not ({last_line(str(error))}); see "
            f"whether its head runs, and run again: what is scored is kept"
        ) from error
    ensure_fits(execution.scoring, there)


def ensure_fits(scoring: ScoringExecution, there: Mapping[str, float]) -> None:
    """Returns when the workers fit into the CPUs and GPUs that are `there`, as Ray counts them.

    Raises:
        ClusterError: they do not.
    """
    cpus, gpus = int(there.get("CPU", 0)), there.get("GPU", 0.0)
    if cpus < scoring.num_workers:
        raise ClusterError(
            f"execution.scoring.num_workers must be at most the {cpus} CPUs that the Ray cluster "
            f"has now, got {scoring.num_workers}; lower it or add nodes, and run again: what is "
            f"scored is kept"
        )
    wanted = scoring.num_workers * scoring.gpus_per_worker
    if gpus < wanted:
        raise ClusterError(
            f"execution.scoring.gpus_per_worker must fit the {gpus:g} GPUs of the Ray cluster, got "
            f"{scoring.gpus_per_worker:g} for each of {scoring.num_workers} workers; lower it or "
            f"num_workers, or add nodes"
        )


def ensure_answers(address: str) -> None:
    """Returns when Ray's own health check passes: connecting would try for minutes, then abort.

    Raises:
        ClusterError: it does not.
    """
    named = [] if address == "auto" else ["--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *named]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _no_answer(address, f"no answer within {ANSWER_WITHIN_S} s") from error
    if done.returncode:
        raise _no_answer(address, done.stderr)


def _no_answer(address: str, said: str) -> ClusterError:
    last = last_line(said)
    return ClusterError(
        f"execution.ray.address must be that of a running Ray cluster, got {address!r} ({last}); "
        f"start it with `ray start --head`, correct the address, make this machine a node of it "
        f"with `ray start --address=HOST:PORT --num-cpus=0`, or leave the address out for a "
        f"cluster of this machine alone"
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Returns a context after which SIGTERM does what it did before: Ray takes it for itself."""
    before, exited = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit:  # what Ray makes of SIGTERM
        exited = True
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    if exited:
        signal.raise_signal(signal.SIGTERM)


def last_line(said: str) -> str:
    """Returns the last line of what Ray says: the others are traces."""
    return (said.strip().splitlines() or ["nothing was said"])[-1]
