"""Opening the warehouse's file: waiting while another process holds it, and naming who does."""

import logging
import os
import re
import time
from pathlib import Path

import duckdb

from circuitseer_assets.errors import WarehouseError

log = logging.getLogger("circuitseer")
_FIRST_WAIT_S = 0.02
_LONGEST_WAIT_S = 1.0
# A join of millions of rows goes on beyond it on disk, beside the file.
MEMORY_LIMIT = "2GB"
_HELD = ("Could not set lock", "Conflicting lock", "already open")


def open_waiting(path: Path, *, read_only: bool, limit_s: float) -> duckdb.DuckDBPyConnection:
    """Returns a connection to the DuckDB file, as soon as no other process keeps it locked.

    A wait of more than a second is told, once.

    Raises:
        WarehouseError: the file stayed locked for `limit_s`, or is no DuckDB file.
    """
    started = time.monotonic()
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return duckdb.connect(
                str(path), read_only=read_only, config={"memory_limit": MEMORY_LIMIT}
            )
        except duckdb.Error as error:
            holder = _holder(error)
            if holder is None:
                reason = " ".join(str(error).split())
                raise WarehouseError(
                    f"the warehouse {path} must be a DuckDB file of this version: {reason}"
                ) from error
            if time.monotonic() - started + wait_s > limit_s:
                raise WarehouseError(
                    f"the warehouse {path} must be free within {limit_s:g} s, but {holder} holds "
                    f"it; wait for that process or stop it, then run again"
                ) from error
        time.sleep(wait_s)
        if wait_s < _LONGEST_WAIT_S <= 2 * wait_s:
            log.warning("waiting up to %g s for the warehouse, which %s holds", limit_s, holder)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _holder(error: duckdb.Error) -> str | None:
    message = str(error)
    if "with a different configuration" in message:
        return f"this process (PID {os.getpid()}, another of its threads)"
    if not any(words in message for words in _HELD):  # "block" or a path may hold "lock" as well
        return None
    match = re.search(r"\(PID (\d+)\)", message)
    return f"the process with PID {match[1]}" if match else "another process"
