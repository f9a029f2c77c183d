"""Which epochs are validated."""

from pathlib import Path

import pytest

from fixtures.runs import train_student

SELDOM = "trainer.check_val_every_n_epoch=50"


@pytest.mark.parametrize(
    ("lengths", "validated", "epochs"),
    [
        (["trainer.max_epochs=1", SELDOM], [1], 1),
        (["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"], [2, 3], 3),
        (["trainer.max_epochs=-1", "trainer.max_steps=13", SELDOM], [2], 2),  # an epoch has ten steps
    ],
)
def test_the_last_student_is_validated(
    lengths: list[str], validated: list[int], epochs: int, teacher: Path, tmp_path: Path
) -> None:
    """And the best checkpoint is the best of all that were validated, the last one included."""
    result = train_student(tmp_path / "run", teacher, *lengths)
    scores = {entry["epoch"]: entry["score"] for entry in result.record.timeline}
    assert len(scores) == epochs
    assert [epoch for epoch, score in scores.items() if score is not None] == validated
    last, best = result.record.metrics["last"], result.record.metrics["best"]
    assert scores[epochs] == pytest.approx(last["val_score"])
    assert best["val_score"] == pytest.approx(max(scores[epoch] or 0 for epoch in validated))
