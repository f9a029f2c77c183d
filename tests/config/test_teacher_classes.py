"""The names of a teacher's classes are compared with the data's: reordered, chosen, or refused."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from distillery.config.teacher_classes import fit_classes
from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.runs.run import train
from distillery.tasks.classification import Classification
from distillery.teachers.frozen import Teacher
from fixtures.building import build
from fixtures.composing import Compose

DIGITS = [str(digit) for digit in range(10)]
SMALL = ["experiment=digits_demo", "min_teacher_score=0", "logger=none", "data.train_size=100", "trainer.max_epochs=1"]


BATCH = {"image": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
Made = Callable[[Sequence[str], Sequence[int]], Path]


@pytest.fixture
def run_of(teacher: Path, tmp_path: Path) -> Made:
    """`run_of(names, rows)`: a run as if trained on classes of these names, its classifier's rows in this order."""

    def made(names: Sequence[str], rows: Sequence[int]) -> Path:
        folder = tmp_path / "named"
        shutil.copytree(teacher, folder, dirs_exist_ok=True)
        record = json.loads((folder / "run.json").read_text())
        record["data"]["classes"] = list(names)
        state = load_file(folder / "student.safetensors")
        state |= {name: state[name][list(rows)].clone() for name in ("head.weight", "head.bias")}
        save_file(state, folder / "student.safetensors")
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return made


def test_a_teacher_of_two_exchanged_classes(compose_train: Compose, teacher: Path, run_of: Made) -> None:
    rows = [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]
    results = {}
    for name, folder in {"own": teacher, "moved": run_of([DIGITS[row] for row in rows], rows)}.items():
        results[name] = train(compose_train(*SMALL, f"teachers.main.weights={folder}", run=name))
    own, moved = (results[name].record for name in ("own", "moved"))
    assert moved.teachers["main"]["score"] == own.teachers["main"]["score"] > 0.7
    assert moved.metrics["last"] == own.metrics["last"]
    assert own.remarks == []
    assert re.fullmatch(
        r"teacher main: classes reordered by their names: 3 is its 8 \(3\), 8 is its 3 \(8\)", moved.remarks[0]
    )


def fitted(theirs: Sequence[str] | None, ours: Sequence[str], number: int = 0, classes: object = None) -> Teacher:
    """A teacher of classes with these names, after `fit_classes`."""
    torch.manual_seed(0)
    net = SmallCNN(number or len(theirs or ours), 1, (2, 3))
    if theirs:
        net.config = SimpleNamespace(id2label=dict(enumerate(theirs)))
    teacher = Teacher(net, name="main")
    cfg = OmegaConf.create({"net": {}, "weights": "file.pth", "classes": classes})
    logits = teacher(BATCH).logits
    fit_classes(teacher, cfg, SimpleNamespace(classes=ours), Classification(), len(ours), logits.shape, BATCH)
    teacher.before = logits
    return teacher


def test_names_in_another_order_are_reordered() -> None:
    for theirs, ours, index in [
        (["bad", "good", "fair"], ["bad", "fair", "good"], [0, 2, 1]),
        (["NEGATIVE", "Very_good"], ["very good", "negative"], [1, 0]),
        (["2", "10", "1"], ["1", "2", "10"], [2, 0, 1]),
        (["+", "-"], ["-", "+"], [1, 0]),
        (["us", "US", "uk"], ["US", "uk", "us"], [1, 2, 0]),  # without case two of them would be one
    ]:
        made = fitted(theirs, ours)
        torch.testing.assert_close(made(BATCH).logits, made.before[:, index], rtol=0, atol=0)
        tapped = made.tap(["head", "head:weight"], BATCH)
        assert tapped["head:weight"][0] == tapped["head"][1] == len(ours)
        torch.testing.assert_close(made(BATCH).layers["head"], made.before[:, index], rtol=0, atol=0)
        moved = next(place for place, number in enumerate(index) if place != number)
        assert made.about_classes.startswith(f"classes reordered by their names: {ours[moved]} is its {index[moved]} (")
        assert made.expected_fingerprint() == made.fingerprint()
        torch.testing.assert_close(made.reset("other")(BATCH).logits, made.before, rtol=0, atol=0)


def test_names_that_say_nothing_are_taken_as_they_are() -> None:
    for theirs, ours in [
        (None, ["ant", "bee"]),
        (["LABEL_0", "LABEL_1"], ["ant", "bee"]),
        (["ant", "bee"], ["0", "1"]),
        (["ant", "bee"], ["ant", "bee"]),
        (["ant", "bee", "cat"], ["Ant", "BEE", "cat "]),
    ]:
        made = fitted(theirs, ours)
        assert (made.about_classes, made.other_classes) == ("", "")


def test_names_that_differ() -> None:
    why = fitted(["ant", "bee", "cat"], ["ant", "bee", "fox"]).other_classes
    assert why.startswith(
        "has classes of other names. Its: ant, bee, cat. The data's: ant, bee, fox. Only the teacher has cat; only the "
        "data have fox. If they mean the same, say so: teachers.main.classes=[0,1,2]"
    )


def test_classes_that_are_chosen() -> None:
    many = ["cat", "fox", "ant", "bee"]
    for chosen in ("names", ["ant", "bee"], [2, 3], {"bee": "Bee", "ant": 2}):
        made = fitted(many, ["ant", "bee"], classes=chosen)
        torch.testing.assert_close(made(BATCH).logits, made.before[:, [2, 3]], rtol=0, atol=0)
        assert made.about_classes == "classes by teachers.main.classes: ant is its 2 (ant), bee is its 3 (bee)"
    assert fitted(None, ["a"], 5, [4])(BATCH).logits.shape == (4, 1)
    assert "teachers.main.classes=names takes these" in fitted(many, ["ant", "bee"]).other_classes
    for chosen, why in {
        ("ant",): r"has 1 classes, and the data 2 \(ant, bee\)",
        ("ant", "bear"): r"the teacher has no class 'bear'\. Did you mean 'bee'",
        (2, 4): r"no class 4: the teacher has 4, counted from 0",
        (2, 2): r"class 2 stands for several",
    }.items():
        with pytest.raises(UserError, match=rf"^teachers\.main\.classes.*{why}"):
            fitted(many, ["ant", "bee"], classes=list(chosen))
    with pytest.raises(UserError, match=r"no class of the teacher for the data's bee"):
        fitted(many, ["ant", "bee"], classes={"ant": 2})
    with pytest.raises(UserError, match=r"the data have no class 'bees'\. Did you mean 'bee'"):
        fitted(many, ["ant", "bee"], classes={"ant": 2, "bee": 3, "bees": 3})
    with pytest.raises(UserError, match=r"names of the teacher's classes are unknown"):
        fitted(None, ["ant", "bee"], 4, ["ant", "bee"])


def test_a_teacher_without_a_classifier(compose_train: Compose, tmp_path: Path) -> None:
    """Features and relations are learnt from it, logits are not; its embedding is its output."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=0, in_chans=1, img_size=32)
    save_weights(net, tmp_path / "vit.safetensors")
    given = ["model/teacher=timm", "teachers.main.net.model_name=test_vit", "+teachers.main.net.num_classes=0"]
    given += ["+teachers.main.net.img_size=32", f"teachers.main.weights={tmp_path / 'vit.safetensors'}"]
    given += ["teachers.main.input.size=32", *(setting for setting in SMALL if setting != "experiment=digits_demo")]
    with pytest.raises(
        UserError, match=r"main network has no classifier: it gives 64 features\..*on features, relations"
    ):
        build(compose_train(*given))
    result = train(compose_train(*given, "loss/response=[]", "loss/relation=[rkd]"))
    main = result.parts.distiller.frozen["main"]
    batch = result.parts.example
    torch.testing.assert_close(main(batch).layers["embedding"], main(batch).logits, rtol=0, atol=0)
    entry = result.record.teachers["main"]
    assert entry["scored_by"] == "linear probe on 100 training samples, as it has no classifier: it gives 64 features"
    assert entry["score"] > 0.2


def test_a_pretrained_network_of_timm(compose_train: Compose, tmp_path: Path) -> None:
    """It keeps its own classes; another number of them would mean a random classifier."""
    torch.manual_seed(0)
    save_weights(timm.create_model("test_vit", in_chans=3, img_size=160), tmp_path / "vit.safetensors")
    given = [*SMALL[1:], "model/teacher=timm", "teachers.main.net.model_name=test_vit", "teachers.main.input.size=160"]
    given += [f"+teachers.main.net.pretrained_cfg_overlay={{file: '{tmp_path / 'vit.safetensors'}'}}"]
    given += ["teachers.main.input.mean=[0,0,0]", "teachers.main.input.std=[1,1,1]"]
    with pytest.raises(UserError, match=r"main network gives logits \(8, 1000\) where the task has 10 classes"):
        build(compose_train(*given))
    relation = ["loss/response=[]", "loss/relation=[rkd]"]
    parts = build(compose_train(*given, *relation))
    assert parts.distiller.frozen["main"].other_classes
    assert parts.distiller.remarks == [
        "teacher main: its images are normalised by {'mean': [0.0, 0.0, 0.0], 'std': [1.0, 1.0, 1.0]}, and its weights "
        "were trained with {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}: see its `input`"
    ]
    assert build(compose_train(*given, "teachers.main.classes=[9,8,7,6,5,4,3,2,1,0]")).distiller.frozen["main"]
    with pytest.raises(UserError, match=r"num_classes=10 would give it a new, random classifier, as test_vit has 1000"):
        build(compose_train(*given, *relation, "+teachers.main.net.num_classes=10"))
