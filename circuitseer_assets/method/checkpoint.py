"""Subset in, checkpoint out: supervised fine-tuning, with the loss on the response only.

The trainer is TRL's `SFTTrainer`. Rows are tokenised here, not by the trainer, so that what is too
long is known and returned, and so that a prompt has exactly the tokens it has in the evaluation.
"""

import gc
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import SFTTrainer

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method.trainer import (
    WHOLE_MARK,
    Report,
    Reporter,
    WholeCheckpoints,
    build_trainer,
    no_progress_bars,
)
from circuitseer_assets.method.training_rows import steps_an_epoch, tokenize_samples
from circuitseer_assets.records import FineTuning, Sample, digest_of
from circuitseer_assets.settings import TrainingPlacement, TrainingSettings

CODE_VERSION = "1"
"""Counts up whenever the same inputs would give another checkpoint."""

_RESULT = "fine_tuning.json"


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    placement: TrainingPlacement,
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

    Every process of a `placement` of several calls this with the same arguments, and each gets the
    same; only the first reports and writes. A step's loss is then one process's within 1e-4 of it.

    Raises:
        SettingsError: no sample is short enough, or there is no template to render prompts with.
        ModelError: the chat template refuses a sample, the loss stopped being a number, a trainer
            checkpoint holds what could run code, or there are not as many processes as the
            placement says.

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
    with no_progress_bars():
        trainer = build_trainer(
            model, tokenizer, data.rows, settings, placement, output_dir / "trainer"
        )
        trainer.add_callback(Reporter(report))
        trainer.add_callback(WholeCheckpoints())
        # What one placement saved, another does not resume from: each shards it in its own way.
        stamp = digest_of([identity, placement.num_processes, placement.sharding])
        with PartialState().main_process_first():  # which clears away; the others find it done
            last = _last_whole_checkpoint(output_dir / "trainer", stamp)
        _train(trainer, last)
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
        **_first_and_final([loss for _, loss in losses], steps_an_epoch(len(data.rows), settings)),
        duration_s=time.monotonic() - started,
    )
    if PartialState().is_main_process:
        _write_result(output_dir, identity, fine_tuning)
        shutil.rmtree(output_dir / "trainer", ignore_errors=True)
    PartialState().wait_for_everyone()
    del trainer, model
    _release_memory()
    return fine_tuning


def _train(trainer: SFTTrainer, checkpoint: str | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:  # PyTorch's guard: nothing of the file was run
        raise ModelError(
            f"a trainer checkpoint must hold tensors and numbers alone, and {checkpoint} has a "
            f"file that holds something else, which could run code; remove that folder and run "
            f"again, to train on from an older one or from the start"
        ) from error


# files --------------------------------------------------------------------------------------------


def _last_whole_checkpoint(folder: Path, identity: str) -> str | None:
    """Returns the newest finished trainer checkpoint, after clearing away every other one.

    One may be of another training (other settings, rows or weights), another's writing may have
    been interrupted, or the removal of an older one, which then is torn and still marked as whole.
    """
    stamp = folder / "identity"
    if not stamp.is_file() or stamp.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(identity)
        return None
    whole: list[Path] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / WHOLE_MARK).is_file():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    for older in whole:
        if older != newest:
            shutil.rmtree(older)
    return None if newest is None else str(newest)


def _save(
    trainer: SFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    folder: Path,
) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        model = _gathered(trainer)
    if not PartialState().is_main_process:
        return
    if settings.lora is not None:
        # Merged in float32: in bfloat16 a small update of a large weight would be rounded away.
        model = model.float().merge_and_unload()
    model.to(dtype=torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32)
    # Of whatever training was here before: its losses must not stand beside another's weights.
    (folder.parent / _RESULT).unlink(missing_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _gathered(trainer: SFTTrainer) -> PreTrainedModel:
    """Returns a sharded model, whole in the first process; all give their shards."""
    sharded: Any = trainer.model
    weights = trainer.accelerator.get_state_dict(sharded)
    automatic: Any = AutoModelForCausalLM
    with torch.device("meta"):
        whole: PreTrainedModel = automatic.from_config(sharded.config)
    if PartialState().is_main_process:
        whole.load_state_dict(weights, assign=True)
        whole.tie_weights()
        whole.generation_config = sharded.generation_config
    return whole


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
    return FineTuning.of(stored["fine_tuning"])


def _weights_digest(model: PreTrainedModel) -> str:
    """Returns a digest of a few values of every weight: enough to tell two models apart."""
    return digest_of(
        [
            [name, list(weight.shape), weight.flatten()[:8].float().cpu().numpy().tobytes().hex()]
            for name, weight in model.state_dict().items()
        ]
    )


def _first_and_final(losses: Sequence[float], steps_an_epoch: int) -> dict[str, float]:
    # Batches differ by more than a short training lowers the loss; epochs are of the same samples.
    window = max(1, min(25, len(losses) // 4))
    if len(losses) >= 2 * steps_an_epoch:
        window = steps_an_epoch
    first, final = losses[:window], losses[-window:]
    return {
        "first_loss_nats": sum(first) / len(first),
        "final_loss_nats": sum(final) / len(final),
    }


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
