"""What a teacher gave elsewhere: columns of tables and files beside the data, by position or path, or refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.module import Data
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.hf_dataset import hf_dataset
from distillery.data.sources.hf_images import hf_images
from distillery.data.sources.image_folder import image_folder
from distillery.data.sources.text_files import jsonl, text_csv
from distillery.data.stored_targets import with_stored_targets
from distillery.data.vision import VisionData
from fixtures.datasets import write_image_folder
from fixtures.texts import write_csv, write_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def vision(raw: RawData, **given: Any) -> VisionData:
    settings = {"batch_size": 4, "eval_batch_size": 3, "seed": 0, "val_size": 0} | given
    channels = raw.train.inputs.shape[0]
    return VisionData(lambda: raw, mean=[0.5] * channels, std=[0.5] * channels, **settings)


def pictures(train: int = 6, test: int = 4) -> VisionData:
    """Two classes; the training and the test images are counted on their own."""
    train_split, test_split = (
        Split.whole(TensorImages(torch.rand(size, 1, 4, 4)), torch.arange(size) % 2) for size in (train, test)
    )
    return vision(RawData("pictures", ("ant", "bee"), train_split, test_split))


def write(file: Path, **arrays: Any) -> str:
    if file.suffix == ".npz":
        np.savez(file, **{name: np.asarray(values) for name, values in arrays.items()})
    else:
        pd.DataFrame({name: list(values) for name, values in arrays.items()}).to_parquet(file)
    return str(file)


def stored(data: Data, path: str | None, **given: Any) -> Data:
    return with_stored_targets(data, "main", path, **{"temperature": 1.0, "missing": "refuse"} | given)


def served(data: Data, stage: Any = "train") -> dict[int, list[float]]:
    """The probabilities that the batches of a split hold, by index."""
    batches = [data.dataset(stage)[key] for key in data.sampler(stage)]
    both = [(batch["index"].tolist(), batch["stored/main"].softmax(-1).tolist()) for batch in batches]
    return {index: row for indices, rows in both for index, row in zip(indices, rows, strict=True)}


def distributions(size: int, classes: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size).astype(np.float32)


def test_files_by_index_by_order_and_of_both_splits(tmp_path: Path) -> None:
    p = distributions(10)
    order = np.array([3, 1, 5, 0, 4, 2])
    for suffix in ("npz", "parquet"):
        data = stored(pictures(), write(tmp_path / f"a.{suffix}", probabilities=p[:6], index=order))
        assert served(data) == {index: pytest.approx(p[row].tolist()) for row, index in enumerate(order)}
        assert data.splits["test"].extra == {}
        assert data.targets["main"].remarks[-1] == (
            "it is not scored where 4 of the 4 test samples have no stored target"
        )
        both = {"index": [*order, 0, 1, 2, 3], "split": ["train"] * 6 + ["test"] * 4}
        data = stored(pictures(), write(tmp_path / f"b.{suffix}", probabilities=p, **both))
        assert served(data, "test") == {index: pytest.approx(p[6 + index].tolist()) for index in range(4)}
        assert list(data.without_inputs("test"))[1].keys() == {"target", "index", "stored/main"}
    data = stored(pictures(), write(tmp_path / "c.npz", logits=3 * p[:6], embeddings=p, classes=["ant", "bee"]))
    assert served(data)[2] == pytest.approx(torch.from_numpy(3 * p[2]).softmax(-1).tolist())
    assert data.targets["main"].classes == ("ant", "bee")
    assert "c.npz has no index: its rows are taken in the order of the data" in data.targets["main"].remarks
    assert "arrays of c.npz that are not read: embeddings" in data.targets["main"].remarks
    path = write(tmp_path / "d.parquet", probabilities=[{"bee": b, "ant": a} for a, b in p[:6]])
    data = stored(pictures(), path)
    assert (data.targets["main"].classes, served(data)[0]) == (("bee", "ant"), pytest.approx(p[0, ::-1].tolist()))


def test_softmax_at_the_temperature_gives_the_probabilities_back(tmp_path: Path) -> None:
    p = distributions(6)
    p[0] = [1, 0]
    path = write(tmp_path / "a.npz", probabilities=p)
    for temperature in (1.0, 4.0):
        logits = stored(pictures(), path, temperature=temperature).targets["main"].logits["train"]
        assert logits.isfinite().all()
        assert np.allclose((logits / temperature).softmax(-1), p, atol=1e-6)
    assert pictures().fingerprint != stored(pictures(), path).fingerprint  # pictures are random
    data = pictures()
    assert stored(data, path).fingerprint == data.fingerprint


def test_pictures_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    write_image_folder(root, {"train": 3, "test": 2}, shape=(8, 8))
    monkeypatch.chdir(tmp_path)
    files = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    p = distributions(len(files), 3)
    expected = {str(file): row for file, row in zip(files, p, strict=True)}
    names = [str(file) for file in files]
    for given in (names, [str(root / name) for name in names], [f"set/{name}" for name in names]):
        data = vision(image_folder(root, size=8), root=str(root))
        data.source = lambda root: image_folder(root, size=8)
        data = stored(data, write(tmp_path / "a.npz", probabilities=p, path=given))
        for stage in ("train", "test"):
            paths = data.splits[stage].inputs.paths  # type: ignore[index]
            for index, row in served(data, stage).items():
                assert row == pytest.approx(expected[str(paths[index].relative_to(root))].tolist())
    part = {"probabilities": p[2:], "path": [*names[2:-1], "train/ant/gone.png"]}
    with pytest.raises(
        UserError, match=r"main: \d of the 9 training samples have no target in .*a.npz, for instance .*png"
    ):
        stored(data, write(tmp_path / "a.npz", probabilities=p[-8:], path=names[-8:]))
    data = stored(data, write(tmp_path / "a.npz", **part), missing="skip")
    assert (
        "1 rows of a.npz are of no picture in the data, for instance train/ant/gone.png" in data.targets["main"].remarks
    )
    with pytest.raises(
        UserError, match=r"no path is that of a picture in the data: nowhere.png in the file, (train|test)/ant"
    ):
        stored(data, write(tmp_path / "a.npz", probabilities=p[:1], path=["nowhere.png"]))


def test_samples_without_a_target_are_refused_or_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", probabilities=distributions(4), index=[5, 0, 2, 3])
    with pytest.raises(
        UserError, match=r"2 of the 6 training samples have no target in .*, for instance index 1, index 4"
    ):
        stored(pictures(), path)
    data = stored(pictures(), path, missing="skip")
    assert sorted(served(data)) == [0, 2, 3, 5]
    with pytest.raises(UserError, match=r"4 of the 4 training samples have no target in .*Add them\.$"):
        stored(pictures(4), write(tmp_path / "b.npz", probabilities=distributions(2), index=[0, 1], split=["test"] * 2))


def test_files_that_are_refused(tmp_path: Path) -> None:
    good = distributions(6)
    bad: Mapping[str, tuple[Any, dict[str, Any]]] = {
        r"row 2 \(index 7\): \[-1, 2\] are no probabilities: one of them is negative\. .*array `logits`": (
            [*good[:2], [-1, 2], *good[3:]],
            {"index": [0, 1, 7, 2, 3, 4]},
        ),
        r"row 0: \[nan, 1\] are no probabilities: one of them is not a finite": ([[np.nan, 1], *good[1:]], {}),
        r"row 0: \[60, 40\] .* do not add up to 1 \(6 of 6 rows": ([[60, 40]] * 6, {}),
        r"probabilities are int64 \[6\], and not numbers \[N, C\]\. Class numbers are hard labels": ([0, 1] * 3, {}),
        r"no array `index`, and 4 rows where the data have 6 samples": (good[:4], {}),
        r"probabilities has 6 rows, and index the shape \[5\]": (good, {"index": range(5)}),
        r"index is float64, and not whole": (good, {"index": np.arange(6.0)}),
        r"1 samples have several rows, for instance index 4": (good, {"index": [0, 1, 2, 3, 4, 4]}),
        r"there is no sample 6; the positions are from 0 to 5": (good, {"index": [0, 1, 2, 3, 4, 6]}),
        r"split has 'tets'.* Did you mean 'test'": (good, {"index": range(6), "split": ["tets"] * 6}),
        r"split has 'val'. Its validation samples are cut from train": (
            good,
            {"index": range(6), "split": ["val"] * 6},
        ),
        r"2 columns, and classes 3 names": (good, {"classes": ["a", "b", "c"]}),
        r"has both index and path": (good, {"index": range(6), "path": ["a"] * 6}),
        r"the samples of 'pictures' are no files": (good, {"path": ["a"] * 6}),
        r"has both probabilities and logits": (good, {"logits": good}),
        r"cannot be read: .*Save texts as arrays of strings": (good, {"split": np.array(["train"] * 6, dtype=object)}),
    }
    for message, (values, more) in bad.items():
        with pytest.raises(UserError, match=message):
            stored(pictures(), write(tmp_path / "a.npz", probabilities=values, **more))
    with pytest.raises(UserError, match=r"has the arrays probs: it must have one array called probabilities or logits"):
        stored(pictures(), write(tmp_path / "a.npz", probs=good))
    with pytest.raises(UserError, match=r"row 1: the logits have a number that is not finite"):
        stored(pictures(), write(tmp_path / "a.npz", logits=[good[0], [np.inf, 0], *good[2:]]))
    (tmp_path / "torn.npz").write_bytes(b"PK")
    for name, why in (
        ("torn.npz", "cannot be read"),
        ("c.npz", "no such file.*'a.npz'"),
        ("a.npy", "must be a file of"),
    ):
        with pytest.raises(UserError, match=rf"teachers\.main\.path=.*{name}.*{why}"):
            stored(pictures(), str(tmp_path / name))
    with pytest.raises(UserError, match=r"main\.path is null, and the data have no soft labels"):
        stored(pictures(), None)


def test_columns_of_text_files(tmp_path: Path) -> None:
    texts, labels = list("abcdef"), ["x", "y", "", "x", "", "y"]
    p = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], None, [1, 0], [0.25, 0.75]]
    head = ("text", "label", "p")
    rows = [(*row, "" if soft is None else json.dumps(soft)) for *row, soft in zip(texts, labels, p, strict=True)]
    test = write_csv(tmp_path / "test.csv", [("t", "x"), ("u", "y")])
    path = write_csv(tmp_path / "own.csv", [*rows, ("a", "x", "[0, 1]")], head)
    more = write_csv(tmp_path / "more.csv", [("g", "[0.3, 0.7]")], ("text", "p"))
    raw = text_csv(path, soft_label="p", test=test, unlabelled=more)
    expected = {text: soft or [np.nan] * 2 for text, soft in zip(texts, p, strict=True)} | {"g": [0.3, 0.7]}
    assert raw.train.soft_labels is not None
    assert raw.test.soft_labels is not None
    for text, row in zip(raw.train.inputs.first, raw.train.soft_labels.tolist(), strict=True):
        assert row == pytest.approx(expected[text], nan_ok=True)
    assert raw.test.soft_labels.isnan().all()
    assert "test: without soft labels (p)" in raw.remarks
    # one column for each class; the order of the settings does not matter
    rows = [(*row, *(("", "") if soft is None else soft)) for *row, soft in zip(texts, labels, p, strict=True)]
    path = write_csv(tmp_path / "wide.csv", rows, ("text", "label", "px", "py"))
    wide = text_csv(path, soft_label={"y": "py", "x": "px"}, test=test).train
    assert wide.soft_labels is not None
    assert torch.equal(wide.soft_labels.nan_to_num(), raw.train.soft_labels[:-1].nan_to_num())
    # of JSON lines lists or mappings
    given = [
        {"text": t, "label": n or None, "p": s and {"y": s[1], "x": s[0]}}
        for t, n, s in zip(texts, labels, p, strict=True)
    ]
    lines = jsonl(write_jsonl(tmp_path / "own.jsonl", given), soft_label="p", test=labelled_lines(tmp_path)).train
    assert lines.soft_labels is not None
    assert torch.equal(lines.soft_labels.nan_to_num(), raw.train.soft_labels[:-1].nan_to_num())
    numbers = [{"text": t, "label": number / 2, "p": number / 3} for number, t in enumerate(texts)]
    made = jsonl(write_jsonl(tmp_path / "n.jsonl", numbers), soft_label="p", regression=True, test_fraction=0.5).train
    assert made.soft_labels is not None
    assert made.soft_labels[:, 0].tolist() == pytest.approx([number / 3 for number in range(6)])


def labelled_lines(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "test.jsonl", [{"text": "t", "label": "x"}, {"text": "u", "label": "y"}])


def test_columns_that_are_refused(tmp_path: Path) -> None:
    bad = {
        r"line 3, data.source.soft_label=p: 1 is a single number, and a soft label is a list of 2 .*source.label": 1,
        r"line 3, data.source.soft_label=p: 3 numbers, where the data have 2 classes \(x, y\)": [0.2, 0.3, 0.5],
        r"line 3, .*: \[0\.9, 0\.9\] are no probabilities: they do not add up to 1\. If they are logits, take": [
            0.9,
            0.9,
        ],
        r"line 3, .*: \[-1, 2\] are no probabilities: one of them is negative": [-1, 2],
        r"line 3, .*: its classes are x, z, and those of the data x, y": {"x": 0.5, "z": 0.5},
        r"line 3, .*: '0\.9 0\.1' is no list of probabilities in JSON": "0.9 0.1",
    }
    for message, value in bad.items():
        rows = [{"text": f"text {i}", "label": "xy"[i % 2], "p": [0.5, 0.5]} for i in range(10)]
        rows[2]["p"] = value
        with pytest.raises(UserError, match=message):
            jsonl(write_jsonl(tmp_path / "own.jsonl", rows), soft_label="p")
    with pytest.raises(
        UserError, match=r"data.source.soft_label=q: .*own.jsonl' has no such column\. Choose from: label, p, text"
    ):
        jsonl(tmp_path / "own.jsonl", soft_label="q")
    with pytest.raises(UserError, match=r"data.source.words and data.source.soft_label exclude each other"):
        jsonl(tmp_path / "own.jsonl", words="text", soft_label="p")


def test_columns_of_hugging_face_data_sets(tmp_path: Path) -> None:
    p = distributions(12).tolist()
    (tmp_path / "texts").mkdir()
    (tmp_path / "images").mkdir()
    write_image_folder(tmp_path / "png", {"train": 6}, shape=(8, 8))
    files = sorted((tmp_path / "png" / "train").rglob("*.png"))[:12]
    for part, rows in (("train", range(8)), ("test", range(8, 12))):
        texts = [{"sentence": f"text {i}", "label": i % 2, "p": p[i]} for i in rows]
        datasets.Dataset.from_list(texts).to_parquet(str(tmp_path / "texts" / f"{part}.parquet"))
        images = [{"image": {"bytes": files[i].read_bytes(), "path": None}, "label": i % 2, "p": p[i]} for i in rows]
        if part == "train":
            images[3]["label"] = None
        data = datasets.Dataset.from_list(images).cast_column("image", datasets.Image())
        data.to_parquet(str(tmp_path / "images" / f"{part}.parquet"))
    raw = hf_dataset(str(tmp_path / "texts"), val=None, soft_label="p")
    assert raw.train.soft_labels is not None
    assert raw.test.soft_labels is not None
    assert raw.train.soft_labels.tolist() == [pytest.approx(row) for row in p[:8]]
    assert raw.test.soft_labels.tolist() == [pytest.approx(row) for row in p[8:]]
    raw = hf_images(str(tmp_path / "images"), size=8, val=None, soft_label="p")
    assert raw.train.soft_labels is not None
    assert raw.train.soft_labels.tolist() == [pytest.approx(p[row]) for row in (0, 1, 2, 4, 5, 6, 7, 3)]
    with pytest.raises(UserError, match=r"soft_label=q: .* has no such column"):
        hf_images(str(tmp_path / "images"), size=8, val=None, soft_label="q")
