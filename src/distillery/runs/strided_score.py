"""Score a run's student on overlapping windows of whole documents."""

import math
from pathlib import Path

from hydra.utils import instantiate

from distillery.config.networks import run_config
from distillery.core.errors import UserError
from distillery.core.terminal import say
from distillery.runs.verify_run import rebuilt
from distillery.tasks.evaluate import Evaluation, evaluate
from distillery.tasks.windows import strided

UNCUT = 2**31 - 1  # tokens: no document is longer


def strided_score(folder: Path, stride: int, split: str = "test") -> Evaluation:
    """Score the student of a finished run in windows of `data.max_length` tokens, each `stride` tokens after the last.

    Documents are read to their end, also where the run truncates them.

    Raises:
        UserError: see `verify_run.rebuilt` and `strided`; a run that predicts no tokens of documents.
    """
    record, student, data, task = rebuilt(folder, split)
    settings = run_config(str(folder), "run").data
    if settings.get("pack") is None:
        raise UserError(f"stride={stride}: the run in {folder} reads no documents. stride is for task=causal_lm.")
    outputs = task.outputs(data)
    whole = instantiate(settings, max_length=UNCUT, pack=False, too_long="split")
    whole.prepare_data()
    whole.setup("test" if split == "test" else "fit")
    batches = whole.test_dataloader() if split == "test" else whole.val_dataloader()
    windows = strided(batches, data.limit, stride, data.eval_batch_size)  # type: ignore[attr-defined]
    found = evaluate(student, windows, task, outputs)
    say(
        f"{record.method} seed {record.seed}: {split} {task.score} {found.score:.4f}, perplexity "
        f"{math.exp(found.loss):.2f}, with {task.measured(data, stride)}"
    )
    say(f"recorded: {record.metrics['last'][f'{split}_score']:.4f}, with {task.measured(data)}")
    return found
