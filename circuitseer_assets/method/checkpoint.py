"""Subset in, checkpoint out: supervised fine-tuning, with the loss on the response only.

The trainer is TRL's `SFTTrainer`. Rows are tokenised here, not by the trainer, so that what is too
long is known and returned, and so that a prompt has exactly the tokens it has in the evaluation.
"""

import gc
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from datasets import (
    Dataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as hf_logging
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method.training_rows import TrainingRow, tokenize_samples
from circuitseer_assets.records import Sample, digest_of
from circuitseer_assets.settings import Lora, TrainingSettings

CODE_VERSION = "1"
"""Counts up whenever the same inputs would give another checkpoint."""

_WHOLE = "whole"
_RESULT = "fine_tuning.json"

logger = logging.getLogger(__name__)

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class FineTuning:
    """What a fine-tuning did.

    `losses` holds (step, loss in nats a response token). `first_loss_nats` and `final_loss_nats`
    are means over the first and the last quarter of the steps, at most 25. `num_train_tokens`
    counts the rows' tokens once, prompts included; `num_response_tokens` those that carry loss.
    `duration_s` is the time of the last call: a resumed training took longer in all.
    """

    losses: tuple[tuple[int, float], ...]
    num_steps: int
    num_samples: int
    num_train_tokens: int
    num_response_tokens: int
    dropped: tuple[str, ...]
    truncated: tuple[str, ...]
    first_loss_nats: float
    final_loss_nats: float
    duration_s: float


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    *,
    output_dir: Path,
    prompt_template: str | None,
    report: Report,
) -> FineTuning:
    """Returns what the fine-tuning of `model` on `samples` did; the result is `output_dir/model`.

    That folder holds a plain model and its tokenizer: adapters are merged into the weights they
    adapt. `model` is trained in place, is of no further use to the caller, and is not kept.
    `report` gets every step with its metrics. A training that was interrupted goes on from its last
    trainer checkpoint in `output_dir`, and one that had ended is returned as it ended.

    Raises:
        SettingsError: no sample is short enough, or the prompt cannot be rendered.
        ModelError: the loss stopped being a number.

    Reference: CircuitSeer, arXiv 2510.18470, fine-tunes on the drawn subset.
    Deviation: its recipe is not found in the summaries read; all of it is `settings`.
    """
    started = time.monotonic()
    data = tokenize_samples(tokenizer, samples, settings, prompt_template=prompt_template)
    identity = digest_of(
        [CODE_VERSION, settings.model_dump(mode="json"), data.digest, _weights_digest(model)]
    )
    ended = _read_result(output_dir, identity)
    if ended is not None:
        return ended
    with _no_progress_bars():
        trainer = _build_trainer(model, tokenizer, data.rows, settings, output_dir / "trainer")
        trainer.add_callback(_Reporter(report))
        trainer.add_callback(_WholeCheckpoints())
        last = _last_whole_checkpoint(output_dir / "trainer", identity)
        trainer.train(resume_from_checkpoint=last)
        _save(trainer, tokenizer, settings, output_dir / "model")
    losses = tuple(
        (int(entry["step"]), float(entry["loss"]))
        for entry in trainer.state.log_history
        if "loss" in entry
    )
    fine_tuning = FineTuning(
        losses=losses,
        num_steps=trainer.state.global_step,
        num_samples=len(data.rows),
        num_train_tokens=sum(len(row.input_ids) for row in data.rows),
        num_response_tokens=sum(len(row.input_ids) - row.response_start for row in data.rows),
        dropped=data.dropped,
        truncated=data.truncated,
        **_first_and_final([loss for _, loss in losses]),
        duration_s=time.monotonic() - started,
    )
    _write_result(output_dir, identity, fine_tuning)
    shutil.rmtree(output_dir / "trainer", ignore_errors=True)
    del trainer, model
    _release_memory()
    return fine_tuning


# the trainer --------------------------------------------------------------------------------------


def count_steps(num_samples: int, settings: TrainingSettings) -> int:
    """Returns the number of optimiser steps that training on `num_samples` takes."""
    if settings.max_steps is not None:
        return settings.max_steps
    batches = math.ceil(num_samples / settings.batch_size)
    return math.ceil(settings.epochs * math.ceil(batches / settings.gradient_accumulation_steps))


class _Reporter(TrainerCallback):
    """Passes every logged step on, and stops a training whose loss is no number."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports one step."""
        metrics = {
            name: float(value)
            for name, value in kwargs["logs"].items()
            if isinstance(value, int | float)
        }
        if "loss" not in metrics:
            return
        if not math.isfinite(metrics["loss"]):
            raise ModelError(
                f"the training loss must be a number, got {metrics['loss']} at step "
                f"{state.global_step}; lower training.learning_rate or training.max_grad_norm"
            )
        self._report(state.global_step, metrics)


class _WholeCheckpoints(TrainerCallback):
    """Marks a trainer checkpoint once all its files are written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint just written."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def _build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TrainingRow],
    settings: TrainingSettings,
    folder: Path,
) -> SFTTrainer:
    # All weights train in float32, under autocast where asked; frozen ones need no such precision.
    frozen_in_bfloat16 = settings.lora is not None and settings.dtype == "bfloat16"
    module: torch.nn.Module = model
    module.to(dtype=torch.bfloat16 if frozen_in_bfloat16 else torch.float32)
    module.requires_grad_(settings.lora is None)
    # TRL tells the hub of every trainer that is built, unless this is set.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    trainer = SFTTrainer(
        model=model,
        args=_trainer_settings(model, settings, folder),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [list(row.input_ids) for row in rows],
                "completion_mask": [
                    [int(i >= row.response_start) for i in range(len(row.input_ids))]
                    for row in rows
                ],
            }
        ),
        processing_class=tokenizer,
        peft_config=_lora_config(settings.lora),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer_settings(
    model: PreTrainedModel, settings: TrainingSettings, folder: Path
) -> SFTConfig:
    on_cpu = model.device.type == "cpu"
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=settings.dtype == "bfloat16",
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=on_cpu,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        max_length=settings.max_length,
        completion_only_loss=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_interval_steps,
        # Two, so that the older one is only removed after the newer one is marked as whole.
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )


def _lora_config(lora: Lora | None) -> LoraConfig | None:
    if lora is None:
        return None
    modules = lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


# files --------------------------------------------------------------------------------------------


def _last_whole_checkpoint(folder: Path, identity: str) -> str | None:
    """Returns the newest finished trainer checkpoint, after clearing away all that cannot be used.

    A checkpoint of another training (other settings, rows or weights), or one whose writing was
    interrupted, is removed.
    """
    stamp = folder / "identity"
    if not stamp.is_file() or stamp.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(identity)
        return None
    whole: list[Path] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _WHOLE).is_file():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def _save(
    trainer: SFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    folder: Path,
) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora is not None:
        # Merged in float32: in bfloat16 a small update of a large weight would be rounded away.
        model = model.float().merge_and_unload()
    model.to(dtype=torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _write_result(output_dir: Path, identity: str, fine_tuning: FineTuning) -> None:
    partial = output_dir / f"{_RESULT}.partial"
    partial.write_text(json.dumps({"identity": identity, "fine_tuning": asdict(fine_tuning)}))
    partial.replace(output_dir / _RESULT)


def _read_result(output_dir: Path, identity: str) -> FineTuning | None:
    path = output_dir / _RESULT
    if not path.is_file() or not (output_dir / "model").is_dir():
        return None
    stored = json.loads(path.read_text())
    if stored["identity"] != identity:
        return None
    values = stored["fine_tuning"]
    values["losses"] = tuple((step, loss) for step, loss in values["losses"])
    values["dropped"], values["truncated"] = tuple(values["dropped"]), tuple(values["truncated"])
    return FineTuning(**values)


def _weights_digest(model: PreTrainedModel) -> str:
    """Returns a digest of a few values of every weight: enough to tell two models apart."""
    return digest_of(
        [
            [name, list(weight.shape), weight.detach().flatten()[:8].float().tolist()]
            for name, weight in model.state_dict().items()
        ]
    )


def _first_and_final(losses: Sequence[float]) -> dict[str, float]:
    window = max(1, min(25, len(losses) // 4))
    first, final = losses[:window], losses[-window:]
    return {
        "first_loss_nats": sum(first) / len(first),
        "final_loss_nats": sum(final) / len(final),
    }


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    # `report` says how far the training is; a bar for every file written says nothing.
    shown = hf_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    hf_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown[0]:
            hf_logging.enable_progress_bar()
        if shown[1]:
            enable_progress_bars()


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
