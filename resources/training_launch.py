"""Training in a process of its own, or in several, started through Dagster Pipes.

Its memory is returned when it ends, and its crash is an error here, not this process's end.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError

from circuitseer_assets import errors
from circuitseer_assets.errors import ModelError, SettingsError
from circuitseer_assets.records import FineTuning, ModelUse, Sample
from circuitseer_assets.settings import PROJECT_ROOT, Settings
from resources.sample_files import write_samples
from resources.training_process import (
    LOG_FILE,
    PARENT_VARIABLE,
    REQUEST_FILE,
    SAMPLES_FOLDER,
)

Report = Callable[[int, Mapping[str, float]], None]


def train_in_own_process(
    context: dg.AssetExecutionContext,
    settings: Settings,
    samples: Sequence[Sample],
    *,
    work: Path,
    models: Path,
    report: Report,
) -> tuple[FineTuning, ModelUse]:
    """Returns what `fine_tune` did in other processes; its result is `work/model`.

    Args:
        context: the materialisation that the training is part of.
        settings: everything; `execution.training` says how many processes there are.
        samples: the subset.
        work: where it goes on from, writes to, and keeps its log.
        models: where converted models are kept.
        report: gets every step with its metrics, while the training goes on.

    Raises:
        SettingsError: this machine has not the devices asked for, or `fine_tune` refuses a setting.
        ModelError: the training process died, or `fine_tune` refuses the model.
    """
    on_cpu = _is_on_cpu(settings)
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / SAMPLES_FOLDER, ignore_errors=True)
    write_samples(samples, work / SAMPLES_FOLDER)
    request = {
        "settings": settings.model_dump(mode="json"),
        "models": str(models),
        "on_cpu": on_cpu,
    }
    (work / REQUEST_FILE).write_text(json.dumps(request))
    told = _Told(report)
    client = dg.PipesSubprocessClient(message_reader=told, cwd=str(PROJECT_ROOT))
    try:
        client.run(
            context=context,
            command=[sys.executable, "-m", "resources.training_process", str(work)],
            env={PARENT_VARIABLE: str(os.getpid())},
        )
    except DagsterPipesExecutionError as error:
        told.raise_refusal()
        raise ModelError(
            f"the training process must end with status 0, and {_how_it_ended(error)}; read "
            f"{work / LOG_FILE}, and run again: training goes on from its last trainer checkpoint"
        ) from error
    return told.result()


class _Told(dg.PipesTempFileMessageReader):
    """Takes what the training process tells as it comes; Dagster would give it at the end.

    What fails while a step is reported does not end the training, which is kept; it is raised
    afterwards.
    """

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._ended: dict[str, Any] = {}
        self._refused: dict[str, str] = {}
        self._failure: Exception | None = None

    @contextmanager
    def read_messages(self, handler: Any) -> Iterator[Any]:
        """Returns the context in which messages are read, ours for us and Dagster's for it."""
        sorted_out: Any = _Sorted(handler, self._take)
        with super().read_messages(sorted_out) as params:
            yield params

    def _take(self, message: dict[str, Any]) -> None:
        if "refused" in message:
            self._refused = message
        elif "fine_tuning" in message:
            self._ended = message
        elif self._failure is None:
            try:
                self._report(message["step"], message["metrics"])
            except Exception as error:
                self._failure = error

    def raise_refusal(self) -> None:
        """Raises what the training process was refused with, if it was."""
        if self._refused:
            raise getattr(errors, self._refused["refused"])(self._refused["message"])

    def result(self) -> tuple[FineTuning, ModelUse]:
        """Returns what the training did, or raises what failed while it was reported."""
        if self._failure is not None:
            raise self._failure
        return FineTuning.of(self._ended["fine_tuning"]), ModelUse(**self._ended["model_use"])


class _Sorted:
    """Stands before Dagster's handler of messages, and keeps ours from it."""

    def __init__(self, handler: Any, take: Callable[[dict[str, Any]], None]) -> None:
        self._handler, self._take = handler, take

    def handle_message(self, message: Mapping[str, Any]) -> None:
        """Hands one message to whom it is for."""
        if message["method"] == "report_custom_message":
            self._take(message["params"]["payload"])
        else:
            self._handler.handle_message(message)

    def report_pipes_framework_exception(self, *of: Any) -> None:
        """Hands on what failed while messages were read."""
        self._handler.report_pipes_framework_exception(*of)


def _is_on_cpu(settings: Settings) -> bool:
    import torch

    from resources.language_model import resolve_device

    placement = settings.execution.training
    on_cpu = resolve_device(settings.base_model).type == "cpu"
    num_gpus = torch.cuda.device_count()
    if on_cpu and placement.sharding == "fsdp":
        raise SettingsError(
            "execution.training.sharding must be none on the CPU, for accelerate shards over GPUs "
            "only, got fsdp; set it to none"
        )
    if not on_cpu and placement.num_processes > num_gpus:
        raise SettingsError(
            f"execution.training.num_processes must be at most the number of this machine's GPUs "
            f"({num_gpus}), got {placement.num_processes}; set it to {num_gpus}"
        )
    return on_cpu


def _how_it_ended(error: DagsterPipesExecutionError) -> str:
    # Dagster says the status, and keeps it nowhere else.
    status = int(str(error).rpartition(" ")[2])
    number = -status if status < 0 else status - 128  # of several processes, as a shell says it
    if number not in {known.value for known in signal.Signals}:
        return f"ended with {status}"
    reason = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(number).name} (status {status}{reason})"
