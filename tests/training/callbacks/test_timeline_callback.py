"""What a run's record keeps of its epochs, against schedules and learning rates computed by hand."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from distillery.results.record import RunRecord
from distillery.runs.job import resumed
from distillery.runs.run import train
from fixtures.composing import Compose, with_hint
from fixtures.runs import Died, Dies

STEPS = 8  # an epoch
EPOCHS = 3
SCHEDULED = (
    "loss.kd.weight={schedule: linear, start: 0, end: 1, epochs: 2}",
    "loss.kd.temperature={schedule: step, values: [8, 2], steps: [8]}",
    "callbacks.teacher_guard=null",
)
EACH = ("callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1")
SELDOM = ("trainer.check_val_every_n_epoch=2", "callbacks.checkpoint_best=null")


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Compose:
    """`composed("…", run="…")`: a small run whose kd has schedules."""
    small = with_hint(compose_train, tmp_path, EPOCHS)
    return lambda *overrides, run="run": small(*SCHEDULED, *overrides, run=run)


@pytest.mark.filterwarnings("ignore:The teacher scores")
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_the_numbers_are_those_of_the_last_batch(composed: Compose, interval: str) -> None:
    record = train(composed("optim.optimizer.lr=0.08", f"optim.interval={interval}")).record
    assert RunRecord.read(Path(composed().paths.run)).timeline == record.timeline
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.08)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    for number, entry in enumerate(record.timeline, 1):
        for step in range(STEPS):
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if interval == "step" or step == STEPS - 1:
                scheduler.step()
        last = STEPS * number - 1  # updates before the last batch
        assert (entry["epoch"], entry["step"], entry["stage"]) == (number, STEPS * number, "")
        assert entry["lr"] == pytest.approx(rate)
        assert entry["numbers"] == pytest.approx(
            {
                "task.weight": 1.0,
                "kd.weight": min(1, last / (2 * STEPS)),
                "hint.weight": 1.0,
                "kd.temperature": 8.0 if number == 1 else 2.0,
            }
        )
    assert len(record.timeline) == EPOCHS


def test_a_score_is_there_where_it_was_validated(composed: Compose) -> None:
    cfg = composed(*SELDOM)
    scores = [entry["score"] for entry in train(cfg).record.timeline]
    (log,) = Path(cfg.paths.run).glob("metrics/version_0/metrics.csv")
    second, last = pd.read_csv(log)["val/score"].dropna()
    assert scores == [None, pytest.approx(second), pytest.approx(last)]


def test_a_loss_without_weight_has_no_temperature(composed: Compose) -> None:
    cfg = composed("loss.kd.weight=0", "loss/response=[kd,dkd]", "trainer.max_epochs=1")
    (entry,) = train(cfg).record.timeline
    assert set(entry["numbers"]) == {"task.weight", "kd.weight", "dkd.weight", "hint.weight", "dkd.temperature"}


@pytest.mark.parametrize(
    ("overrides", "after"),
    [
        pytest.param((), STEPS, marks=pytest.mark.slow),  # saved at the end of the first epoch
        (EACH, STEPS + 3),  # in the middle of the second
        pytest.param(EACH, 2 * STEPS - 1, marks=pytest.mark.slow),  # before its last step
        pytest.param(SELDOM, 2 * STEPS + 1, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_whole_of_it(composed: Compose, overrides: tuple[str, ...], after: int) -> None:
    whole = train(composed(*overrides, run="whole")).record.timeline
    cfg = composed(*overrides)
    with pytest.raises(Died):
        train(cfg, callbacks=[Dies(after)])
    broken = RunRecord.read(Path(cfg.paths.run))
    assert broken.status == "failed"
    assert broken.timeline[: after // STEPS] == whole[: after // STEPS]
    assert [entry["step"] for entry in broken.timeline[after // STEPS :]] == [after] * (after % STEPS > 0)
    assert len(whole) == EPOCHS
    assert train(resumed(Path(cfg.paths.run), [])).record.timeline == whole
