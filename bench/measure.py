"""What all measurements share: fair timing, the machine and versions, and the one line of JSON."""

import importlib.metadata
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "duckdb", "numpy")
log = logging.getLogger("bench")


def time_sides(
    sides: Mapping[str, Callable[[], object]], *, repeats: int = 3
) -> dict[str, list[float]]:
    """Returns each side's wall-clock seconds, `repeats` of each, taken turn about.

    On a machine that others use, sides timed one after the other are not comparable: whatever slows
    one repeat of one side slows the other's as well. Nothing is warmed up here: a side that should
    be is called once before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
            log.info("%s, %d of %d: %.2f s", name, repeat + 1, repeats, seconds[name][-1])
    return seconds


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Returns the median over repeats of how many times as long `slower` took as `faster`."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def describe_machine() -> dict[str, Any]:
    """Returns what the timing was taken on."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "system": platform.system(),
        "cpu": next(models, platform.processor()),
        "cores": os.cpu_count(),
    }


def versions_of(*libraries: str) -> dict[str, str]:
    """Returns the versions of Python and of these libraries."""
    versions = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), **versions}


def start_logging() -> None:
    """Sends progress to stderr, and nothing else anywhere."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)


def print_result(
    result: Mapping[str, Any], *, started: float, libraries: Sequence[str] = LIBRARIES
) -> None:
    """Prints the measurement as one line of JSON; `started` is its `time.perf_counter()`."""
    described = {
        "machine": describe_machine(),
        "versions": versions_of(*libraries),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps({**result, **described}))
