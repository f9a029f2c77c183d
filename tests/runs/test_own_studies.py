"""`study=own_images` and `study=own_texts`: from a folder or a file to a report, in one command."""

import json
from pathlib import Path

import pandas as pd

from distillery.results.record import RunRecord
from fixtures.command_line import Cli
from fixtures.datasets import write_image_folder
from fixtures.texts import sentences, tiny_bert, write_tokenizer


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
    tokenizer = write_tokenizer(tmp_path / "my teacher")
    tiny_bert().save_pretrained(tokenizer)
    rows = [json.dumps({"body": text, "mood": ("good", "bad")[label]}) for text, label in sentences(60)]
    (tmp_path / "my texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    columns = ["text=body", "label=mood"]
    given = ["study=own_texts", "path='my texts.jsonl'", "teacher_net='my teacher'", *columns, "student_layers=1"]
    code, shown = cli("study", *given, "epochs=1", "seeds=[0]", "out=own", 'overrides=["min_teacher_score=0"]')
    assert code == 0, shown
    assert list(pd.read_csv(tmp_path / "own" / "report.csv")["method"]) == ["teacher", "baseline", "kd"]
    assert RunRecord.read(tmp_path / "own" / "kd" / "seed0").data["classes"] == ["bad", "good"]
