"""TRL's `SFTTrainer`, set up as the training settings say and silent but for its report."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from accelerate import PartialState
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
from circuitseer_assets.method.resumable_trainer import ResumableTrainer
from circuitseer_assets.method.shared_training import SharedTrainer
from circuitseer_assets.method.training_rows import TrainingRow
from circuitseer_assets.settings import Lora, TrainingPlacement, TrainingSettings

WHOLE_MARK = "whole"
"""The file that says that all other files of a trainer checkpoint are written."""

Report = Callable[[int, Mapping[str, float]], None]


class Reporter(TrainerCallback):
    """Passes every logged step on, once, and stops a training whose loss is no number."""

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
        if state.is_world_process_zero:
            self._report(state.global_step, metrics)


class WholeCheckpoints(TrainerCallback):
    """Marks a trainer checkpoint once all its files are written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint just written."""
        PartialState().wait_for_everyone()  # each writes files of its own
        if not state.is_world_process_zero:
            return
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE_MARK).touch()


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TrainingRow],
    settings: TrainingSettings,
    placement: TrainingPlacement,
    folder: Path,
) -> SFTTrainer:
    """Returns a trainer of `model` on `rows` that keeps its checkpoints in `folder`.

    Raises:
        ModelError: there are not as many processes as the placement says.
    """
    # All weights train in float32, under autocast where asked; frozen ones need no such precision.
    frozen_in_bfloat16 = settings.lora is not None and settings.dtype == "bfloat16"
    module: torch.nn.Module = model
    module.to(dtype=torch.bfloat16 if frozen_in_bfloat16 else torch.float32)
    module.requires_grad_(settings.lora is None)
    # TRL tells the hub of every trainer that is built, unless this is set.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    arguments = _trainer_settings(model, settings, placement, folder)
    if arguments.world_size != placement.num_processes:
        raise ModelError(
            f"execution.training.num_processes must be the number of processes that train, got "
            f"{placement.num_processes} for {arguments.world_size}; train in a run of the graph, "
            f"which starts them"
        )
    trainer_class = ResumableTrainer if placement.num_processes == 1 else SharedTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
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
    model: PreTrainedModel, settings: TrainingSettings, placement: TrainingPlacement, folder: Path
) -> SFTConfig:
    on_cpu = model.device.type == "cpu"
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size // placement.num_processes,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
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
        **_memory_savers(settings, placement),
    )
    # One process trains on one GPU, however many it sees: TRL refuses to split it over several.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _memory_savers(settings: TrainingSettings, placement: TrainingPlacement) -> dict[str, Any]:
    if placement.sharding == "none":
        # Its old name, which all of transformers 5 knows: vLLM keeps it below the new one.
        return {"gradient_checkpointing": True} if settings.gradient_checkpointing else {}
    # Each process saves its own shards: the whole would have to fit into one's memory.
    config = {
        "activation_checkpointing": settings.gradient_checkpointing,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    return {"fsdp": True, "fsdp_config": config}


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


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hides the bars of every file written; how far the training is, its report says."""
    shown = hf_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    try:
        yield
    finally:
        if shown[0]:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if shown[1]:
            enable_progress_bars()
