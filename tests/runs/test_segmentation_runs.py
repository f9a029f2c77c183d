"""Runs on pixels: the recorded mIoU is that of the saved predictions, and a run of another student resumes it all."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from distillery.config.build import build_data
from distillery.core.errors import UserError
from distillery.results.report.collect import collect
from distillery.runs.run import train
from distillery.runs.verify_run import verify_run
from fixtures.building import build
from fixtures.composing import Compose
from fixtures.datasets import write_fashion_mnist

pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")  # after a few steps
SMALL = ("data.train_size=40", "data.val_size=20", "data.batch_size=20", "trainer.max_epochs=2", "logger=none")
NETWORK = ("student.net.widths=[4,6]", "student.net.width=4", "trainer.check_val_every_n_epoch=1")


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("clothes")
    write_fashion_mnist(root)
    return f"data.root='{root}'"


@pytest.fixture
def teacher(compose_train: Compose, clothes: str) -> Path:
    return train(
        compose_train("experiment=fashion_mnist_segmentation_teacher", *SMALL, *NETWORK, clothes, run="teacher")
    ).folder


def test_miou_is_that_of_the_saved_predictions(compose_train: Compose, clothes: str, teacher: Path) -> None:
    """kd over pixels, cwd between the logit maps, at between the stages; counted anew by scikit-learn."""
    losses = "loss/feature=[cwd]", "loss/attention=[attention_transfer]"
    own = [*SMALL, *NETWORK, clothes, *losses, f"teachers.main.weights='{teacher}'"]
    cfg = compose_train("experiment=fashion_mnist_segmentation", *own)
    result = train(cfg)
    with np.load(result.folder / "predictions.npz") as saved:
        arrays = dict(saved)
    pixels = build_data(cfg).dataset("test")
    assert len(arrays["index"]) == 40 * 28 * 28
    assert (arrays["index"] == np.repeat(np.arange(40), 28 * 28)).all()
    assert (
        arrays["target"] == np.concatenate([pixels.inputs_of.args[0].masks.values[i].flatten() for i in range(40)])
    ).all()
    for name, score in (
        ("student", result.record.metrics["last"]["test_score"]),
        ("main", result.record.teachers["main"]["score"]),
    ):
        assert arrays[name].dtype == np.uint8
        assert score == pytest.approx(
            jaccard_score(arrays["target"], arrays[name], average="macro", zero_division=0), abs=1e-6
        )
    assert (result.folder / "predictions.npz").stat().st_size < 40_000
    (run,) = collect([result.folder])
    assert run.agreement == pytest.approx((arrays["student"] == arrays["main"]).mean())
    assert verify_run(result.folder).score == pytest.approx(result.record.metrics["last"]["test_score"], abs=1e-7)


def test_segformer_learns_from_a_teacher_of_another_resolution(
    compose_train: Compose, clothes: str, teacher: Path
) -> None:
    """It sees larger images; its logits have a quarter of their resolution. Some images have no mask."""
    settings = "{hidden_sizes: [4,6,8,8], depths: [1,1,1,1], num_attention_heads: [1,1,2,2], decoder_hidden_size: 8}"
    cfg = compose_train(
        *("data=fashion_mnist_masks", "task=segmentation", "model/teacher=run", "model/student=hf_segmentation"),
        *("student.net.model=segformer", f"+student.net.config={settings}", f"teachers.main.weights='{teacher}'"),
        *(
            "student.input.size=32",
            "loss/response=[kd]",
            "loss/attention=[attention_transfer]",
            "teachers.main.cache=true",
            "data.augment=null",
        ),
        *(*SMALL, clothes, "data.labelled_size=15"),
    )
    result = train(cfg)
    assert result.parts.distiller.student.shapes(result.parts.example).logits == (8, 8, 8, 11)
    assert result.record.data["unlabelled"] == 25
    assert 0 <= result.record.metrics["last"]["test_score"] <= 1


def test_networks_and_losses_that_do_not_fit_are_refused(compose_train: Compose, clothes: str) -> None:
    own = ["model/teacher=none", "data=fashion_mnist_masks", *SMALL, clothes]
    with pytest.raises(UserError, match=r"gives logits \(8, 11\), but this task has labels of pixels"):
        build(compose_train(*own, "task=segmentation", "model/student=cnn"))
    with pytest.raises(UserError, match=r"gives logits \(8, 28, 28, 11\), but this task has labels of samples"):
        build(compose_train(*own, "task=classification", "model/student=fcn"))
    with pytest.raises(UserError, match="have a class for each pixel"):
        build(compose_train(*own, "task=classification", "model/student=cnn"))
