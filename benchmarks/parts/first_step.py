"""When runs begin to train."""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L


class FirstStep(L.Callback):
    """Appends the time of the first update of a run to the file `FIRST_STEPS`."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            with Path(os.environ["FIRST_STEPS"]).open("a", encoding="utf-8") as file:
                print(time.time(), file=file)
