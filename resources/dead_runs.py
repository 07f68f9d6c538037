"""Runs whose process died: they are told to have failed, and give their pool slots back.

A killed process reports nothing. Dagster goes on showing its run as started, and a slot of a
concurrency pool that it held would keep every later run waiting.

A run names its process by PID and start: after a reboot the PID may be another's. Where the system
does not tell when a process started (`start_of`), the PID alone decides. Only this host's runs are
looked at: whether another host's process is alive cannot be seen from here, so its runs are left as
they are until a run starts there.
"""

import os
import socket
from collections.abc import Sequence

import dagster as dg

from resources.processes import is_running, start_of

PID_TAG, HOST_TAG = "circuitseer/pid", "circuitseer/host"


def process_tags(run_id: str) -> dict[str, str]:
    """Returns the tags by which the process of a run, this one, can be found again.

    A run that is started again inherits its parent's tags: they name the run they are of.
    """
    pid = os.getpid()
    return {PID_TAG: f"{run_id}:{pid}:{start_of(pid)}", HOST_TAG: socket.gethostname()}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Returns the runs of this machine that were unfinished though their process is gone.

    Each is now a failed run. No finished run holds a slot any more: the server that started a run
    reports its failure too, and leaves the slot.
    """
    dead = find_dead_runs(instance)
    for run in dead:
        instance.report_run_failed(run, "the process of this run ended without a word")
    for run_id in find_held_slots(instance):
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    return [run.run_id for run in dead]


def find_dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Returns the runs of this machine that are unfinished though their process is gone."""
    unfinished = dg.RunsFilter(
        statuses=[
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.CANCELING,
        ],
        tags={HOST_TAG: socket.gethostname()},
    )
    return [run for run in instance.get_runs(unfinished) if _is_dead(run)]


def find_held_slots(instance: dg.DagsterInstance, dead: Sequence[dg.DagsterRun] = ()) -> list[str]:
    """Returns the ids of the runs that are over, or `dead`, and still hold a slot of a pool."""
    held = []
    for run_id in sorted(instance.event_log_storage.get_concurrency_run_ids()):
        holder = instance.get_run_by_id(run_id)
        is_over = holder is None or holder.is_finished
        if is_over or any(run.run_id == run_id for run in dead):
            held.append(run_id)
    return held


def find_running(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Returns the runs at work, or about to stop, after ending those that died."""
    end_dead_runs(instance)
    at_work = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return list(instance.get_runs(dg.RunsFilter(statuses=at_work)))


def _is_dead(run: dg.DagsterRun) -> bool:
    run_id, _, process = run.tags[PID_TAG].partition(":")
    pid, _, start = process.partition(":")
    return run_id == run.run_id and not is_running(int(pid), start)
