"""A run that is interrupted ends as interrupted, whatever was at work when the signal came."""

import signal
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from jobs.run import PipelineFailedError, run_job
from resources.home import Home


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
