"""Runs whose teacher has a device of its own."""

from collections.abc import Callable

import pytest

from distillery.runs.run import Result
from distillery.runs.verify_run import teacher_of


@pytest.mark.slow
def test_the_same_device_gives_the_same_bits(run: Callable[..., Result]) -> None:
    """It is another job all the same, as one with other hardware is. A run of another machine is still read."""
    own = ("loss/feature=[hint]", "trainer.max_epochs=1")
    plain, placed = run(*own), run(*own, "teachers.main.placement=cpu")
    assert placed.record.student_sha256 == plain.record.student_sha256
    assert placed.record.config_hash != plain.record.config_hash
    path = placed.folder / "config.yaml"
    config = path.read_text(encoding="utf-8")
    for written, found in (("cpu", "cpu"), ("cuda:7", None), ("shard", None)):
        path.write_text(config.replace("placement: cpu", f"placement: {written}"), encoding="utf-8")
        teacher = teacher_of(placed.folder, placed.record, "main")
        assert teacher is not None
        assert teacher.placement == found
