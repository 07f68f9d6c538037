"""Runs whose process is gone, also where its PID is another's by now."""

import os
import socket
import uuid

import dagster as dg
import pytest

from resources.dead_runs import HOST_TAG, PID_TAG, end_dead_runs, process_tags
from resources.processes import start_of


@dg.op
def nothing() -> None:
    pass


@dg.job
def job() -> None:
    nothing()


@pytest.mark.skipif(not start_of(os.getpid()), reason="the system does not tell starts")
def test_a_run_is_dead_when_its_pid_is_another_process_by_now() -> None:
    pid = os.getpid()
    names = ["alive", "reused", "rebooted", "unknown", "untold", "unbegun", "elsewhere"]
    ids = {name: str(uuid.uuid4()) for name in names}
    boot, ticks = start_of(pid).split("/")
    here = {
        "alive": process_tags(ids["alive"])[PID_TAG],
        "reused": f"{ids['reused']}:{pid}:{boot}/{int(ticks) - 1}",
        "rebooted": f"{ids['rebooted']}:{pid}:{uuid.uuid4()}/{ticks}",
        "unknown": f"{ids['unknown']}:{pid}:",
        "untold": f"{ids['untold']}:{pid}",
        "unbegun": f"{ids['unbegun']}:{pid}:{uuid.uuid4()}/{ticks}",
    }
    tags = {name: {PID_TAG: tag, HOST_TAG: socket.gethostname()} for name, tag in here.items()}
    tags["elsewhere"] = {PID_TAG: f"{ids['elsewhere']}:{pid}:another/1", HOST_TAG: "another-host"}
    with dg.instance_for_test() as instance:
        for name, run_id in ids.items():
            unbegun, started = dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED
            status = unbegun if name == "unbegun" else started
            instance.create_run_for_job(job, run_id=run_id, tags=tags[name], status=status)
        dead = set(end_dead_runs(instance))
        assert dead == {ids["reused"], ids["rebooted"], ids["unbegun"]}
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert {run.run_id for run in failed} == dead
