"""Runs whose process died: they are told to have failed, and give their pool slots back.

A killed process reports nothing. Dagster goes on showing its run as started, and a slot of a
concurrency pool that it held would keep every later run waiting.
"""

import os
import socket

import dagster as dg

from resources.processes import is_running

PID_TAG, HOST_TAG = "circuitseer/pid", "circuitseer/host"


def process_tags() -> dict[str, str]:
    """Returns the tags by which a run's process, this one, can be found again."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname()}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Returns the runs of this machine that were unfinished though their process is gone.

    Each is now a failed run without a slot.
    """
    unfinished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING],
        tags={HOST_TAG: socket.gethostname()},
    )
    dead = [run for run in instance.get_runs(unfinished) if not is_running(int(run.tags[PID_TAG]))]
    for run in dead:
        instance.report_run_failed(run, "the process of this run ended without a word")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]
