"""Runs in MLflow that came to nothing: they are ended, and the models they logged removed.

A killed process ends nothing: MLflow goes on showing its run as running. A model that it had
logged, or a run that failed, belongs to no checkpoint, for a checkpoint counts once it is recorded.
"""

import os
import socket
from typing import Any

from resources.processes import is_running, start_of
from resources.tracking import Tracking
from resources.tracking_removal import remove_tracked

PROCESS_TAG = "circuitseer_process"


def process_tag() -> str:
    """Returns what tells this process from every other one, on whatever machine."""
    pid = os.getpid()
    return f"{socket.gethostname()}|{pid}|{start_of(pid)}"


def end_abandoned(tracking: Tracking, artifact_id: str) -> list[str]:
    """Returns the runs that were making an artifact when their process died; now they are killed.

    Theirs, and those of runs that failed, are the models that are removed. What runs on another
    machine is left as it is: whether it lives cannot be seen from here.

    Raises:
        TrackingError: the store cannot be reached.
    """
    with tracking.reaching("end the runs of dead processes"):
        client = tracking.client()
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            return []
        said = f"tags.artifact_id = '{artifact_id}'"
        runs = client.search_runs([experiment.experiment_id], filter_string=said)
        dead = [r.info.run_id for r in runs if r.info.status == "RUNNING" and _is_dead(r)]
        failed = [run.info.run_id for run in runs if run.info.status == "FAILED"]
        models: list[str] = []
        for run_id in (*dead, *failed):
            of_run = f"source_run_id = '{run_id}'"
            found = client.search_logged_models([experiment.experiment_id], filter_string=of_run)
            models += [str(model.model_id) for model in found]
    remove_tracked(tracking, (), models)
    with tracking.reaching("end the runs of dead processes"):
        for run_id in dead:
            client.set_terminated(run_id, status="KILLED")
    return dead


def end_recorded(tracking: Tracking, run_id: str) -> None:
    """Returns when the run that made a recorded artifact has ended.

    Whoever made it may have been killed between recording it and saying so.

    Raises:
        TrackingError: the store cannot be reached, or has no such run.
    """
    with tracking.reaching(f"end run {run_id}"):
        client = tracking.client()
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status="FINISHED")


def _is_dead(run: Any) -> bool:
    host, _, process = run.data.tags.get(PROCESS_TAG, "").partition("|")
    pid, _, start = process.partition("|")
    return host == socket.gethostname() and not is_running(int(pid), start)
