"""Which loggers a run has, what TensorBoard was told, and what is refused."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from distillery.core.errors import UserError
from distillery.runs import loggers
from distillery.runs.run import train
from fixtures.runs import STUDENT, assert_rows_close, csv_rows

TEACHER = ["experiment=digits_teacher", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]


@pytest.mark.parametrize(
    ("choice", "keys"),
    [
        ("csv", {"csv"}),
        ("wandb", {"csv", "wandb"}),
        ("tensorboard", {"csv", "tensorboard"}),
        ("[wandb,tensorboard]", {"csv", "wandb", "tensorboard"}),
        ("none", set()),
    ],
)
def test_which_loggers(choice: str, keys: set[str], compose_train: Any) -> None:
    assert compose_train(*TEACHER, f"logger={choice}").logger.keys() == keys


@pytest.mark.parametrize("choice", ["none", "[]"])
def test_without_a_logger_it_trains_too(choice: str, compose_train: Any) -> None:
    assert train(compose_train(*TEACHER, f"logger={choice}")).record.status == "finished"


def test_tensorboard_has_the_losses_and_the_score(teacher: Path, compose_train: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    student = [*STUDENT, "data.batch_size=50", f"teachers.main.weights='{teacher}'"]
    result = train(compose_train(*student, "logger=tensorboard"))
    events = accumulator.EventAccumulator(str(result.folder / "tensorboard" / "version_0"))
    events.Reload()
    for term in ("train/task", "train/kd"):
        ours = {event.step: {term: event.value} for event in events.Scalars(term)}
        assert_rows_close(ours, csv_rows(result.folder, {term}))
    record = result.record
    wanted = {
        "test/score": record.metrics["last"]["test_score"],
        "test/nll": record.metrics["last"]["nll"],
        "fidelity/main/kl": record.fidelity["main"]["kl"],
        "fidelity/main/cka": record.fidelity["main"]["cka"],
        "cost/params": record.cost["params"],
    }
    for name, value in wanted.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (6, pytest.approx(value)), name

    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData
    session, experiment = plugin(), plugin()
    for name, into in (("session_start_info", session), ("experiment", experiment)):
        content = events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content
        into.ParseFromString(content)
    settings = session.session_start_info.hparams
    assert settings["loss/kd/temperature"].number_value == 4
    assert settings["seed"].number_value == 0
    assert wanted.keys() <= {each.name.tag for each in experiment.experiment.metric_infos}


def test_a_report_is_shown_in_tensorboard(compose_train: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "report.md").write_text("# Title\n\n| method |\n", encoding="utf-8")
    (tmp_path / "report.csv").touch()
    Image.new("RGB", (20, 10), "red").save(tmp_path / "report.png")
    loggers.log_report(compose_train(*TEACHER, "logger=tensorboard"), pd.DataFrame(), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "report"))
    events.Reload()
    (shown,) = events.Images("report")
    assert (shown.width, shown.height) == (20, 10)
    (text,) = events.Tensors("report/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_missing_package_is_named(compose_train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("TENSORBOARD", "TENSORBOARDX"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard._{package}_AVAILABLE", False)
    with pytest.raises(UserError, match=r"logger\.tensorboard needs a package.*pip install -e '\.\[tensorboard\]'"):
        train(compose_train(*TEACHER, "logger=tensorboard"))


def test_an_unknown_setting_is_refused(compose_train: Any) -> None:
    with pytest.raises(UserError, match=r"logger\.wandb\.grup.*'group'"):
        train(compose_train(*TEACHER, "logger=wandb", "+logger.wandb.grup=x"))
