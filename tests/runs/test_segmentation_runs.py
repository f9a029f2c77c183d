"""Runs on pixels: the recorded mIoU is that of the saved predictions, and a run of another student resumes it all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import jaccard_score

from distillery.config.build import build_data
from distillery.core.errors import UserError
from distillery.models.evaluation_mode import evaluating
from distillery.results.report.collect import collect
from distillery.runs.predict import predict_files
from distillery.runs.run import train
from distillery.runs.score_other_data import score_other_data
from distillery.runs.verify_run import rebuilt, verify_run
from fixtures.building import build
from fixtures.composing import Compose
from fixtures.datasets import write_fashion_mnist
from fixtures.runs import config

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


def test_miou_is_that_of_the_saved_predictions(
    compose_train: Compose, clothes: str, teacher: Path, tmp_path: Path
) -> None:
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

    for number, picture in enumerate(pixels.inputs_of.args[0].images.values[:7]):
        Image.fromarray(picture[0].numpy()).save(tmp_path / f"{number}.png")
    assert predict_files(result.folder, [str(tmp_path)], tmp_path / "masks") == []
    found = [np.asarray(Image.open(tmp_path / "masks" / f"{number}.png")).flatten() for number in range(7)]
    assert (np.concatenate(found) == arrays["student"][: 7 * 28 * 28]).all()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a folder of pictures with masks."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "data", 12, seed=0)
    own = ["data=mask_folder", f"data.root='{folder / 'data'}'", "task=segmentation", "model/student=fcn"]
    small = ["data.source.size=16", "data.batch_size=4", "data.num_workers=0", "student.net.widths=[4,6]"]
    more = ["data.source.classes=[sky,road,car]", "student.net.width=4", "trainer.max_epochs=1", "logger=none"]
    train(config(folder / "run", *own, *small, *more, "model/teacher=none", "optim.optimizer.lr=0.1"))
    return folder / "run"


def write_scenes(root: Path, number: int, seed: int) -> None:
    """Pictures of several sizes, and masks of three classes; some pixels count nowhere."""
    draw = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for each in range(number):
        size = 14 + each, 30 - each
        mask = draw.choice([0, 1, 2, 255], size, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        noise = draw.integers(0, 60, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise + 60 * (mask % 4)[..., None]).save(root / "images" / f"{each}.png")
        Image.fromarray(mask).save(root / "masks" / f"{each}.png")


def masks_by_hand(run: Path, files: list[Path]) -> list[NDArray[np.int64]]:
    """The likeliest class of each pixel of the squeezed pictures."""
    student = rebuilt(run, "test")[1]
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = []
    for file in files:
        squeezed = Image.open(file).resize((16, 16), Image.Resampling.BILINEAR)
        image = (torch.from_numpy(np.array(squeezed)).permute(2, 0, 1) / 255 - mean) / std
        with evaluating(student):
            found.append(student.net(image[None])[0].argmax(0).numpy())
    return found


def test_predicted_masks_have_the_size_of_their_pictures(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", 3, seed=1)
    write_scenes(tmp_path / "b", 2, seed=2)
    files = [
        tmp_path / folder / "images" / f"{n}.png" for folder, number in (("a", 3), ("b", 2)) for n in range(number)
    ]
    assert predict_files(scenes, [str(file) for file in files], tmp_path / "out") == []
    classes = set()
    for file, expected in zip(files, masks_by_hand(scenes, files), strict=True):
        with Image.open(tmp_path / "out" / file.relative_to(tmp_path)) as mask, Image.open(file) as picture:
            assert (mask.mode, mask.size) == ("P", picture.size)
            scaled = Image.fromarray(expected.astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
            assert (np.asarray(mask) == np.asarray(scaled)).all()
            assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0], "PASCAL VOC's first colours"
            classes |= {*np.unique(expected).tolist()}
    assert len(classes) > 1
    Image.open(files[0]).save(files[0].with_suffix(".jpg"))
    for given, out, message in (
        ([*files[:1], files[0].with_suffix(".jpg")], "twice", r"would both have the mask '.*0\.png'"),
        (files[:3], "a/images", r"the mask of '.*0\.png' would replace the given"),
        (files, "masks.csv", r"predicts a mask for each picture: out=<folder>"),
    ):
        with pytest.raises(UserError, match=message):
            predict_files(scenes, [str(file) for file in given], tmp_path / out)
    assert not (tmp_path / "twice").exists()


def test_other_scenes_are_scored(scenes: Path, tmp_path: Path) -> None:
    """All pixels of all pictures but those that count nowhere, by scikit-learn."""
    write_scenes(tmp_path / "other", 6, seed=3)
    files = [tmp_path / "other" / "images" / f"{number}.png" for number in range(6)]
    found = score_other_data(scenes, {"root": str(tmp_path / "other")}, "all")
    masks = [np.asarray(Image.open(file.parent.parent / "masks" / file.name)) for file in files]
    squeezed = [mask[np.ix_(*(np.arange(16) * side // 16 for side in mask.shape))] for mask in masks]
    target, predicted = np.stack(squeezed), np.stack(masks_by_hand(scenes, files))
    expected = jaccard_score(target[target != 255], predicted[target != 255], average="macro", zero_division=0)
    assert found.score == pytest.approx(expected, abs=1e-6)
    assert len(found.target) == (target != 255).sum()


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
