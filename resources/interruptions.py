"""SIGINT and SIGTERM, which end a run whenever they come."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SENT_AGAIN_AFTER_S = 0.05


@contextlib.contextmanager
def interruptions_kept(error_name: str) -> Iterator[None]:
    """Returns a context in which an interruption that was lost is sent again.

    A signal that comes while an object's end is told, in `__del__` or in a weak reference's
    callback, raises its error there, and Python prints and forgets it. `error_name` is the class
    that interruptions are raised as, where it is not KeyboardInterrupt.
    """
    before = sys.unraisablehook

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        before(lost)
        if lost.exc_type.__name__ in (error_name, KeyboardInterrupt.__name__):
            # Later: now it would be raised in here, and be lost as well.
            again = threading.Timer(_SENT_AGAIN_AFTER_S, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def interruptions_delayed() -> Iterator[None]:
    """Returns a context in which an interruption waits until it is left: for code that swallows it.

    In another thread than the main one, where Python delivers none, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, _frame: Any) -> None:
        came.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
