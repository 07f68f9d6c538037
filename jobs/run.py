"""Running the graph, or a part of it, from a terminal: in this process, as a run the UI shows."""

import contextlib
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.redaction import RedactedStream
from jobs.observe_settings import find_changed_slices
from resources.dead_runs import process_tags
from resources.home import Home
from resources.interruptions import interruptions_kept

Metadata = Mapping[str, Mapping[str, Any]]
_INTERRUPTION = "DagsterExecutionInterruptedError"
_INTERRUPTED = "the run was interrupted; run again, and it goes on where it was"


class PipelineFailedError(CircuitSeerError):
    """A run of the graph did not reach its end.

    `metadata` is of what it made before; `cause` names the error of ours that ended it, if any.
    """

    def __init__(
        self, message: str, *, cause: str | None = None, metadata: Metadata | None = None
    ) -> None:
        super().__init__(message)
        self.cause = cause
        if cause == _INTERRUPTION:
            self.exit_status = 130  # as of a program that SIGINT ends
        self.metadata = metadata or {}


@dataclass(frozen=True)
class PipelineRun:
    """One finished run of the graph: what each asset said of itself."""

    run_id: str
    duration_s: float
    metadata: Metadata

    def of(self, asset: str, name: str) -> Any:
        """Returns one metadata value of one asset."""
        return self.metadata[asset][name]


def run_job(
    defs: dg.Definitions,
    home: Home,
    job: str = "full_pipeline",
    *,
    assets: Collection[dg.AssetKey] | None = None,
    partition: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> PipelineRun:
    """Returns what a run of a job materialised.

    Args:
        defs: everything Dagster is told of.
        home: where the run is.
        job: its name.
        assets: those to materialise; all that the job has, its observations included, if None.
        partition: which of the job's partitions.
        tags: more of them for the run.

    Raises:
        PipelineFailedError: a step or a blocking check failed; the message is the first failure's.
    """
    home.set_environment()
    started, run_id = time.monotonic(), str(uuid.uuid4())
    with (
        _libraries_quiet(home.folder / "last_run.log"),
        interruptions_kept(_INTERRUPTION),
        dg.DagsterInstance.get() as instance,
    ):
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=None if assets is None else sorted(assets),
            # From its creation on: one that is killed before its first step is known to be dead.
            tags={**(tags or {}), **process_tags(run_id)},
            run_id=run_id,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
        metadata = {
            event.asset_key.to_user_string(): {
                name: value.value
                for name, value in event.step_materialization_data.materialization.metadata.items()
            }
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }
        if not result.success:
            message, cause = _first_failure(result)
            raise PipelineFailedError(message, cause=cause, metadata=metadata)
    return PipelineRun(result.run_id, time.monotonic() - started, metadata)


@contextlib.contextmanager
def _libraries_quiet(log_file: Path) -> Iterator[None]:
    """Sends what libraries print to a file; CircuitSeer's own progress goes to the terminal."""
    with (
        log_file.open("a") as file,
        contextlib.redirect_stdout(RedactedStream(file)),
        contextlib.redirect_stderr(RedactedStream(file)),
    ):
        yield


def observe_now(home: Home) -> list[str]:
    """Returns the names of the settings slices that were observed, because they had changed."""
    home.set_environment()
    with dg.DagsterInstance.get() as instance:
        changed = find_changed_slices(instance, home)
        for observation in changed:
            instance.report_runless_asset_event(observation)
    return [observation.asset_key.path[-1] for observation in changed]


def _first_failure(result: dg.ExecuteInProcessResult) -> tuple[str, str | None]:
    """Returns what failed first, and the name of our error where it was one."""
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and evaluation.blocking:
            said = evaluation.description or "see its metadata in the Dagster UI"
            asset = evaluation.asset_key.to_user_string()
            return f"the blocking check {evaluation.check_name} of {asset} failed: {said}", None
    for event in result.all_events:
        if event.is_step_failure:
            error, said = event.step_failure_data.error, "no message"
            # From Dagster's own wrapper inwards: our sentence, where there is one, stands before
            # the library's error that it was raised from.
            while error is not None:
                said = error.message.strip()
                name, _, sentence = said.partition(":")
                if name.endswith(_INTERRUPTION):
                    return _INTERRUPTED, _INTERRUPTION
                if (ours := name.rsplit(".", 1)[-1]) in _OUR_ERRORS:
                    return sentence.strip(), ours
                error = error.cause
            return (
                f"step {event.step_key} failed: {said}; mend it and run again (`circuitseer "
                f"doctor` looks for what is wrong)"
            ), None
    return "the run failed; see its events in the Dagster UI", None


_OUR_ERRORS = {
    error.__name__
    for base in CircuitSeerError.__subclasses__()
    for error in [base, *base.__subclasses__()]
}
