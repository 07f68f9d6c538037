"""A run that is interrupted ends as interrupted, whatever was at work when the signal came."""

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from circuitseer_assets.assets.dbt_models import dbt_models, dbt_resource
from jobs.run import PipelineFailedError, run_job
from resources.home import Home
from resources.interruptions import interruptions_delayed


class Thing:
    pass


def interrupt() -> None:
    signal.raise_signal(signal.SIGTERM)


def interrupt_while_an_end_is_told() -> None:
    """Interrupts where Python forgets what is raised."""
    things = [Thing()]
    told = weakref.ref(things[0], lambda _: interrupt())
    things.clear()
    assert told() is None


# The warning is what Python prints instead of raising it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("interrupted", [interrupt, interrupt_while_an_end_is_told])
def test_a_signal_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[[], None]
) -> None:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))  # to be put back

    @dg.asset
    def stuck() -> None:
        interrupted()
        for _ in range(100):
            time.sleep(0.05)

    job = dg.define_asset_job("full_pipeline", selection=[stuck])
    before = sys.unraisablehook
    with pytest.raises(PipelineFailedError, match="the run was interrupted") as refused:
        run_job(dg.Definitions(assets=[stuck], jobs=[job]), Home.prepared(tmp_path))
    assert refused.value.exit_status == 130
    assert sys.unraisablehook is before


def test_a_signal_ends_dbt_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))  # to be put back
    home = Home.prepared(tmp_path)
    found: list[psutil.Process] = []

    def interrupt_when_dbt_builds() -> None:
        me, until = psutil.Process(), time.monotonic() + 60
        while not found and time.monotonic() < until:
            time.sleep(0.05)
            for child in me.children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    found.extend([child] if "build" in child.cmdline() else [])
        if found:
            os.kill(os.getpid(), signal.SIGTERM)

    job = dg.define_asset_job("full_pipeline", selection=[dbt_models])
    defs = dg.Definitions(
        assets=[dbt_models], jobs=[job], resources={"home": home, "dbt": dbt_resource()}
    )
    watcher = threading.Thread(target=interrupt_when_dbt_builds)
    watcher.start()
    with pytest.raises(PipelineFailedError, match="the run was interrupted"):
        run_job(defs, home)
    watcher.join()
    [build] = found
    assert not build.is_running()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_delayed_interruption_comes_when_what_swallows_it_is_done(number: int) -> None:
    def raise_it(number: int, _frame: Any) -> None:
        raise InterruptedError(number)

    done = []

    def swallow_all() -> None:
        with contextlib.suppress(InterruptedError):
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("loading")

    before = signal.signal(number, raise_it)
    try:
        with pytest.raises(InterruptedError), interruptions_delayed():
            swallow_all()
        assert signal.getsignal(number) is raise_it
    finally:
        signal.signal(number, before)
    assert done == ["loading"]
