"""Other processes of this machine: which one a PID is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resources.processes import is_running, start_of

tells_starts = pytest.mark.skipif(
    not start_of(os.getpid()), reason="the system does not tell when a process started"
)


def test_a_process_that_ended_is_not_running() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_running(ended.pid)
    assert start_of(ended.pid) == ""


@tells_starts
def test_another_process_of_the_same_pid_is_not_the_one_meant() -> None:
    pid = os.getpid()
    assert start_of(pid) == start_of(pid)
    assert is_running(pid)
    assert is_running(pid, start_of(pid))
    assert not is_running(pid, start_of(1))


@tells_starts
def test_the_start_is_read_whatever_the_program_is_called(tmp_path: Path) -> None:
    program = tmp_path / "a) (b 1 2"
    program.symlink_to("/bin/sleep")
    boot, ticks = start_of(os.getpid()).split("/")
    process = subprocess.Popen([program, "60"])
    try:
        started = start_of(process.pid).split("/")
    finally:
        process.kill()
        process.wait()
    assert started[0] == boot
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert int(ticks) <= int(started[1]) <= now
