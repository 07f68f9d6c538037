"""TRL's trainer, which an interruption after its last step gives no further one."""

from typing import Any

from trl.trainer.sft_trainer import SFTTrainer


class ResumableTrainer(SFTTrainer):
    """Resumed from a trainer checkpoint of the last step, it trains no more.

    Inherited from because the trainer asks whether it has done enough only after a step. It would
    take one more wherever the last step lies in the midst of an epoch.
    """

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs_and_steps: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        has_ended = self.state.global_step >= max_steps
        return (num_train_epochs, 0) if has_ended else epochs_and_steps
