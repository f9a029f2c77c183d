"""`study=own_images` and `study=own_texts`: from a folder or a file to a report, in one command."""

import json
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from distillery.results.record import RunRecord
from fixtures.command_line import Cli
from fixtures.datasets import write_image_folder
from fixtures.texts import SPECIAL, VOCABULARY, WORDS, sentences, tiny_bert, write_csv, write_tokenizer


def test_own_images_in_one_command(tmp_path: Path, cli: Cli) -> None:
    write_image_folder(tmp_path / "my pictures", {"": 20}, shape=(16, 16))
    (tmp_path / "my pictures" / "ant" / "notes.txt").write_text("")
    nets = ["teacher_net=test_resnet", "student_net=test_vit", "teacher_weights=null", "size=32", "epochs=1"]
    given = ["study=own_images", "data.root='my pictures'", *nets, "seeds=[0]", "methods=[kd,kd+rkd]", "out=own"]
    code, shown = cli("study", *given, 'overrides=["data.num_workers=0","min_teacher_score=0"]')
    assert code == 0, shown
    assert list(pd.read_csv(tmp_path / "own" / "report.csv")["method"]) == ["teacher", "baseline", "kd", "kd+rkd"]
    record = RunRecord.read(tmp_path / "own" / "teacher")
    assert "train: 1 files that are no pictures left out (1 .txt)" in record.data["remarks"]
    assert cli("study", *given, "methods=[kd,dkdd]") == (
        2,
        "error methods: there is no loss 'dkdd'. Did you mean 'dkd' or 'kd' or 'rkd'?\n",
    )


def test_own_texts_in_one_command(tmp_path: Path, cli: Cli) -> None:
    """Twenty of the texts have no label."""
    tokenizer = write_tokenizer(tmp_path / "my teacher")
    tiny_bert().save_pretrained(tokenizer)
    rows = [json.dumps({"body": text, "mood": ("good", "bad")[label]}) for text, label in sentences(60)]
    rows += [json.dumps({"body": text, "mood": None}) for text, _ in sentences(80)[60:]]
    (tmp_path / "my texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    columns = ["text=body", "label=mood"]
    given = ["study=own_texts", "path='my texts.jsonl'", "teacher_net='my teacher'", *columns, "student_layers=1"]
    code, shown = cli("study", *given, "epochs=1", "seeds=[0]", "out=own", 'overrides=["min_teacher_score=0"]')
    assert code == 0, shown
    table = pd.read_csv(tmp_path / "own" / "report.csv").set_index("method")
    assert table["labelled"].to_dict() == {"teacher": 43, "baseline": 43, "label_smoothing": 43, "kd": 43}
    assert table["unlabelled"].to_dict() == {"teacher": 0, "baseline": 0, "label_smoothing": 0, "kd": 20}
    assert table.loc["baseline", "flops"] == table.loc["kd", "flops"]
    alone = [f"{name}: 43 labelled" for name in ("teacher", "baseline", "label_smoothing")]
    seen = [*alone, "kd: 43 labelled and 20 unlabelled"]
    report = (tmp_path / "own" / "report.md").read_text(encoding="utf-8")
    assert "\n- ".join(["## Training samples\n", *seen, ""])[:-3] in report
    assert f"Training samples: {'; '.join(seen)}" in " ".join(shown.split())
    assert RunRecord.read(tmp_path / "own" / "kd" / "seed0").data["classes"] == ["bad", "good"]


def test_own_texts_with_a_student_of_another_tokenizer(tmp_path: Path, cli: Cli) -> None:
    for name, vocabulary in (("large", VOCABULARY), ("small", (*SPECIAL, *reversed(WORDS)))):
        tiny_bert().save_pretrained(write_tokenizer(tmp_path / name, vocabulary))
    write_csv(tmp_path / "texts.csv", [(text, ("good", "bad")[label]) for text, label in sentences(60)])
    student = "student=['student.net.model=small','student.weights=pretrained','data.tokenizer=small']"
    given = ["study=own_texts", "path=texts.csv", "teacher_net=large", "epochs=1", "seeds=[0]", "out=own", student]
    code, shown = cli("study", *given, 'overrides=["min_teacher_score=0"]')
    assert code == 0, shown
    cfg = OmegaConf.load(tmp_path / "own" / "kd" / "seed0" / "config.yaml")
    assert (cfg.student.input.tokenizer, cfg.teachers.main.input.tokenizer) == ("small", "large")
