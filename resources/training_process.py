"""The process that trains, and what starts it once for every rank where several do.

    python -m resources.training_process WORK_FOLDER

`resources.training_launch` starts it with a request in the work folder. What it prints goes to
`training.log` there; steps, the end and refusals go to whoever asked, as Dagster Pipes' messages.
It lives no longer than the process that started it, however that one ends.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.records import FineTuning, ModelUse
from circuitseer_assets.redaction import redact_output
from circuitseer_assets.settings import BaseModelSettings, Settings, parse_settings

REQUEST_FILE = "training_request.json"
SAMPLES_FOLDER = "training_samples"
LOG_FILE = "training.log"
PARENT_VARIABLE = "CIRCUITSEER_TRAINING_PARENT"
"""Whose end is a training process's own; its PID."""

Tell = Callable[[dict[str, Any]], None]


def main(work: Path) -> None:
    """Trains as the request in the work folder says."""
    _die_with(int(os.environ[PARENT_VARIABLE]))
    with (work / LOG_FILE).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    redact_output()
    request = json.loads((work / REQUEST_FILE).read_text())
    settings = parse_settings(request["settings"], origin=REQUEST_FILE)
    is_rank = "LOCAL_RANK" in os.environ
    if settings.execution.training.num_processes > 1 and not is_rank:
        sys.exit(_start_ranks(work, settings, on_cpu=request["on_cpu"]))
    # All that is worth keeping is on the disk: an interruption needs no more than a kill does.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with _telling() as tell:
        try:
            fine_tuning, use = _train(work, settings, Path(request["models"]), tell)
        except CircuitSeerError as error:
            tell({"refused": type(error).__name__, "message": str(error)})
            raise
        tell({"fine_tuning": asdict(fine_tuning), "model_use": asdict(use)})


def _die_with(parent: int) -> None:
    """Ends this process as soon as `parent` has ended: nobody would take what it makes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _start_ranks(work: Path, settings: Settings, *, on_cpu: bool) -> int:
    """Returns the status of the first rank that failed, 0 if none did, as a shell gives it."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its own, or accelerate would take whatever file this user has made for other programs.
    config = work / "accelerate.json"
    placed = {
        # The one launcher it has for several processes; that they are on the CPU, they are told.
        "distributed_type": "MULTI_GPU",
        "num_processes": settings.execution.training.num_processes,
        "main_process_port": 0,
        "mixed_precision": "no",
    }
    config.write_text(json.dumps(placed))
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    command = ["--config_file", str(config), "--module", __spec__.name, str(work)]
    try:
        launch_command(launch_command_parser().parse_args(command))
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


@contextlib.contextmanager
def _telling() -> Iterator[Tell]:
    """Returns a context with what tells whoever asked; of several ranks, only the first does."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield lambda message: None
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        yield pipes.report_custom_message


def _train(work: Path, settings: Settings, models: Path, tell: Tell) -> tuple[FineTuning, ModelUse]:
    from accelerate.utils import gather_object

    from circuitseer_assets.method.checkpoint import fine_tune
    from circuitseer_assets.method.forwards import count_forwards
    from resources.language_model import load_language_model
    from resources.sample_files import read_samples

    choose_gpu(settings.base_model)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        tell({"step": step, "metrics": dict(metrics)})

    base_model = load_language_model(settings.base_model, cache=models)
    with count_forwards(base_model.model) as counted:
        fine_tuning = fine_tune(
            base_model.model,
            base_model.tokenizer,
            list(read_samples(work / SAMPLES_FOLDER)),
            settings.training,
            settings.execution.training,
            output_dir=work,
            prompt_template=settings.base_model.prompt_template,
            report=report,
        )
    uses = gather_object([counted.use])
    return fine_tuning, ModelUse(
        sum(use.num_forwards for use in uses), sum(use.num_tokens for use in uses)
    )


def choose_gpu(base_model: BaseModelSettings) -> None:
    """Makes `cuda` mean this rank's GPU, where the base model is on one."""
    import torch

    from resources.language_model import resolve_device

    if resolve_device(base_model).type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
