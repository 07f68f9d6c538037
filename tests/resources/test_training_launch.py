"""Training in processes of its own: several give what one gives, and none outlives who started it.

As a program, `python -m tests.resources.test_training_launch WORK`, it trains with two processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import torch

from circuitseer_assets.errors import ModelError, SettingsError, TrackingError
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import FineTuning, Message, ModelUse, Sample
from circuitseer_assets.settings import PROJECT_ROOT, Settings, parse_settings
from resources import language_model
from resources.training_launch import train_in_own_process
from resources.training_process import choose_gpu
from tests.conftest import small_settings

# An epoch of 21 samples in batches of 8 ends with one of 5, which two processes cannot halve. All
# that is saved before the end is saved in the midst of an epoch, and not of the first.
NUM_SAMPLES, NUM_STEPS, SAVE_STEPS = 21, 12, 4
LOSS_TOLERANCE = 1e-4  # relative, of every step
TWO = {"num_processes": 2}

Report = Callable[[int, Mapping[str, float]], None]


def make_samples() -> list[Sample]:
    problems = generate_problems(NUM_SAMPLES, seed=5, split="train")
    return [
        Sample(f"s{i}", f"p{i}", "test", i, (Message("user", p.prompt),), p.response)
        for i, p in enumerate(problems)
    ]


def make_settings(placement: dict[str, Any], **training: Any) -> Settings:
    values = small_settings()
    values["training"] |= {"max_steps": NUM_STEPS, "save_interval_steps": SAVE_STEPS, **training}
    values["execution"] = {"training": placement}
    return parse_settings(values, origin="test")


def train(
    work: Path,
    placement: dict[str, Any],
    *,
    report: Report = lambda step, metrics: None,
    **training: Any,
) -> tuple[FineTuning, ModelUse]:
    done = []

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        settings = make_settings(placement, **training)
        models = work / "models"
        done.append(
            train_in_own_process(
                context, settings, make_samples(), work=work, models=models, report=report
            )
        )
        return dg.MaterializeResult()

    dg.materialize([trained], instance=dg.DagsterInstance.ephemeral())
    return done[0]


def training_processes(of: int) -> list[psutil.Process]:
    """Returns the processes that train for another, whoever of them started whom."""
    started = psutil.Process(of).children(recursive=True)
    return [process for process in started if "resources.training_process" in process.cmdline()]


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[FineTuning, Path]:
    """What one process makes of the samples: this one."""
    from circuitseer_assets.method.checkpoint import fine_tune
    from resources.language_model import load_language_model

    settings, work = make_settings({}), tmp_path_factory.mktemp("one")
    model = load_language_model(settings.base_model, cache=work / "models")
    done = fine_tune(
        model.model,
        model.tokenizer,
        make_samples(),
        settings.training,
        settings.execution.training,
        output_dir=work,
        prompt_template=None,
        report=lambda step, metrics: None,
    )
    return done, work


def weights(work: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(work / "model/model.safetensors")


@pytest.mark.long
def test_two_processes_train_as_one_does_though_all_were_killed_meanwhile(
    one: tuple[FineTuning, Path], tmp_path: Path, tell: Callable[..., None]
) -> None:
    work = tmp_path / "work"
    starter = subprocess.Popen(
        [sys.executable, "-m", "tests.resources.test_training_launch", str(work)],
        cwd=PROJECT_ROOT,
    )
    saved = work / f"trainer/checkpoint-{SAVE_STEPS}/whole"
    wait_for(saved.exists, 300)
    at_work = training_processes(starter.pid)
    assert len(at_work) == 3  # the launcher and two ranks
    starter.kill()
    starter.wait()
    wait_for(lambda: not any(process.is_running() for process in at_work), 5)

    steps: list[int] = []
    two, use = train(work, TWO, report=lambda step, metrics: steps.append(step))
    assert steps == list(range(steps[0], NUM_STEPS + 1))
    assert steps[0] > SAVE_STEPS
    assert (steps[0] - 1) % SAVE_STEPS == 0  # where it was saved last
    losses, expected = (dict(done.losses) for done in (two, one[0]))
    assert losses == pytest.approx(expected, rel=LOSS_TOLERANCE)
    others = weights(one[1])
    for name, weight in weights(work).items():
        assert weight.allclose(others.pop(name), atol=1e-4), name
    assert not others
    # Batches of 8 but for the last of an epoch, whose 5 rows are filled up.
    assert use.num_forwards == 8 * len(steps)
    worst = max(abs(losses[step] / expected[step] - 1) for step in losses)
    tell("training in two processes", "every step's loss", f"{worst:.1e} from one process's", "")


@pytest.mark.long
def test_a_training_process_that_dies_is_an_error_and_is_gone_on_with(
    one: tuple[FineTuning, Path], tmp_path: Path
) -> None:
    def kill(step: int, metrics: Mapping[str, float]) -> None:
        if step == SAVE_STEPS + 1:
            [process] = training_processes(os.getpid())
            process.send_signal(signal.SIGKILL)

    log = tmp_path / "training.log"
    with pytest.raises(ModelError, match=rf"ended by SIGKILL \(status -9.*read {log}, and run"):
        train(tmp_path, {}, report=kill, save_interval_steps=1)
    steps: list[int] = []

    def fail(step: int, metrics: Mapping[str, float]) -> None:
        steps.append(step)
        raise TrackingError("the store is gone")

    # What a step is reported to fails: the training ends all the same, and is kept.
    with pytest.raises(TrackingError, match="the store is gone"):
        train(tmp_path, {}, report=fail, save_interval_steps=1)
    [first] = steps
    assert 1 < first <= NUM_STEPS
    ended = json.loads((tmp_path / "fine_tuning.json").read_text())["fine_tuning"]
    assert FineTuning.of(ended).losses == one[0].losses
    others = weights(one[1])
    assert all(weight.equal(others[name]) for name, weight in weights(tmp_path).items())


@pytest.mark.long
def test_what_the_training_process_is_refused_with_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"training\.max_length must leave at least one sample"):
        train(tmp_path, {}, max_length=8)


@pytest.mark.parametrize(("device", "chosen"), [("cpu", []), ("cuda:0", [1])])
def test_a_rank_takes_its_gpu_only_where_it_trains_on_one(
    monkeypatch: pytest.MonkeyPatch, device: str, chosen: list[int]
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(language_model, "resolve_device", lambda settings: torch.device(device))
    monkeypatch.setenv("LOCAL_RANK", "1")
    choose_gpu(make_settings({}).base_model)
    assert taken == chosen


def test_shards_need_gpus(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"sharding must be none on the CPU, .* got fsdp; set"):
        train(tmp_path, {**TWO, "sharding": "fsdp"})


if __name__ == "__main__":
    train(Path(sys.argv[1]), TWO)
