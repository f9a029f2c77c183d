"""Validates the student with which the training ends, however seldom others are validated."""

from typing import Any

import lightning as L


class LastValidation(L.Callback):
    """Validate after the last update of `max_epochs` or `max_steps`, whatever `check_val_every_n_epoch` is.

    Otherwise a run of fewer epochs than that has no validation, and no best checkpoint, and in a longer one the last
    student is none of those that the best is chosen from.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # in mid-epoch Lightning validates only what is stopped
        elif not trainer.is_last_batch or trainer.current_epoch + 1 != trainer.max_epochs:
            return
        trainer.check_val_every_n_epoch = trainer.current_epoch + 1
