"""Other processes of this machine: whether one is there, and waiting for one's turn."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("circuitseer")


def is_running(pid: int) -> bool:
    """Returns whether a process with this PID is there, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
