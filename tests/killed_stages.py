"""Makes every stage of a home in children that are killed at random moments of the stage's work.

    python -m tests.killed_stages HOME LOG NUM_KILLS SEED DURATIONS

A child makes all stages up to one, and writes to LOG what it begins and what it has computed. With
no kills one child makes them all. Every child is a fork of this process, which has loaded what a
stage needs: the moments are those of the work, not of the imports. Last on stdout: the kills by
stage, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.transformers  # noqa: F401

import circuitseer_assets.method.checkpoint
import circuitseer_assets.method.evaluation
import circuitseer_assets.method.head_ranking
import circuitseer_assets.method.sample_scores
from circuitseer_assets.assets.stage import StageRun
from circuitseer_assets.method.trainer import Report
from circuitseer_assets.records import Artifact
from jobs.plan import STEPS
from resources.home import Home
from resources.journal import FileJournal


class Log:
    """Lines that survive whoever writes them."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def add(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def make_stages(home: Home, log: Log, number: int) -> None:
    """Makes the first stages, so many of them."""
    count_work(log)
    made: dict[str, Artifact] = {}
    run = StageRun(home, home.settings(), made.__getitem__, "a-run")
    for names, make in list(STEPS.items())[:number]:
        log.add("begin", names[-1], time.monotonic())
        made |= zip(names, (done.artifact for done in make(run)), strict=True)
        log.add("end", names[-1], time.monotonic())


def count_work(log: Log) -> None:
    score_samples = circuitseer_assets.method.sample_scores.score_samples
    fine_tune = circuitseer_assets.method.checkpoint.fine_tune
    set_item = FileJournal.__setitem__

    def score_and_log(*args: Any, **kwargs: Any) -> Any:
        for result in score_samples(*args, **kwargs):
            log.add("scored", result.sample_id)
            yield result

    def set_and_log(journal: FileJournal, name: str, values: Any) -> None:
        set_item(journal, name, values)
        log.add("ablated", name.replace(" ", "_"))

    def tune_and_log(*args: Any, report: Report, **kwargs: Any) -> Any:
        def report_and_log(step: int, metrics: Mapping[str, float]) -> None:
            report(step, metrics)
            log.add("stepped", step)

        return fine_tune(*args, report=report_and_log, **kwargs)

    circuitseer_assets.method.sample_scores.score_samples = score_and_log
    FileJournal.__setitem__ = set_and_log  # type: ignore[method-assign]
    circuitseer_assets.method.checkpoint.fine_tune = tune_and_log


def fork(home: Home, log: Log, number: int) -> int:
    """Returns the PID of a child that makes the first stages; its status is 0 when it has."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        make_stages(home, log, number)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def has_begun(path: Path, stage: str, lines_before: int) -> bool:
    lines = path.read_text().splitlines()[lines_before:]
    return any(line.startswith(f"begin {stage} ") for line in lines)


def kill_once(home: Home, log: Log, path: Path, number: int, delay_s: float) -> bool:
    """Returns whether a child was killed while it made the last of its stages."""
    stage = list(STEPS)[number - 1][-1]
    lines_before = len(path.read_text().splitlines())
    pid = fork(home, log, number)
    while not has_begun(path, stage, lines_before):
        done, status = os.waitpid(pid, os.WNOHANG)
        assert not done, f"a child ended with {status} before it began {stage}"
        time.sleep(0.002)
    time.sleep(delay_s)
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        assert status == 0, f"a child that made {stage} ended with {status}"
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    log.add("killed", stage)
    return True


def main(
    folder: str, log_path: str, num_kills: int, seed: int, durations: dict[str, float]
) -> None:
    home, path = Home.prepared(Path(folder)), Path(log_path)
    home.set_environment()
    path.touch()
    log, kills, lots = Log(path), Counter[str](), random.Random(seed)
    stages = [names[-1] for names in STEPS]
    for number, stage in enumerate(stages, start=1):
        if not num_kills:
            number = len(stages)
        while kills.total() < num_kills * number / len(stages):
            if not kill_once(home, log, path, number, lots.uniform(0, 0.8 * durations[stage])):
                break
            kills[stage] += 1
        _, status = os.waitpid(fork(home, log, number), 0)
        assert status == 0, f"a child that made {stage} ended with {status}"
        if not num_kills:
            break
    print(json.dumps(kills))


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
