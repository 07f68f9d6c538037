"""Other processes of this machine: whether one is there, and waiting for one's turn."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("circuitseer")


def start_of(pid: int) -> str:
    """Returns what tells a process from every other that had or will have its PID.

    It is the system's start and the process's, in ticks since then, as Linux's /proc has them:
    neither moves when the clock is set. Empty where that is not to be had.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The second field is the program's name in parentheses, and may hold spaces and parentheses;
    # the start is the 22nd (proc(5)).
    return f"{boot}/{stat.rpartition(')')[2].split()[22 - 3]}"


def is_running(pid: int, start: str = "") -> bool:
    """Returns whether a process with this PID is there, whoever owns it.

    With a `start`, as of `start_of`, it has to be the very process; an unknown one decides nothing.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not start or start_of(pid) in ("", start)


@contextlib.contextmanager
def if_free(lock_file: Path) -> Iterator[bool]:
    """Returns a context that tells whether nobody was in it; then nobody else is until it ends."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def one_at_a_time(lock_file: Path, what: str) -> Iterator[None]:
    """Returns a context that one process at a time is in; the others wait, and say for `what`.

    The system frees the lock of a process that dies.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is at work on %s; waiting for it", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
