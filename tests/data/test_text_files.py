"""One's own texts: what is read, what is left out and said, what is refused and where."""

import csv
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split
from distillery.data.sources.table_splits import in_class_order
from distillery.data.sources.text_files import jsonl, text_csv

ROWS = [("good film", "pos"), ("bad, bad film", "neg"), ('a "so-so"\nfilm', "neutral"), ("NA", "neg")]


def write_csv(path: Path, rows: Iterable[Sequence[Any]], heading: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([heading, *rows])
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "held.csv", [("fine", "pos"), ("poor", "neg"), ("so-so", "neutral")])


def labelled(data: RawData, split: Split) -> list[tuple[str, str]]:
    return [(split.inputs.first[i], data.classes[split.targets[i]]) for i in split.indices.tolist()]


def test_csv_is_read_as_it_stands(tmp_path: Path, test_file: Path) -> None:
    for name in ["own.csv", "own.tsv", "own.TSV"]:
        path = tmp_path / name
        write_csv(tmp_path / name.lower(), ROWS).rename(path)
        data = text_csv(path, test=test_file)
        assert data.name == "own"
        assert data.classes == ("neg", "neutral", "pos")
        assert labelled(data, data.train) == ROWS
        assert labelled(data, data.test) == [("fine", "pos"), ("poor", "neg"), ("so-so", "neutral")]
        assert data.val is None
        assert data.remarks == ()


def test_other_columns_separators_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = ["id;b;a;stars", "1;yes;no;10", "2;oui;non;9", "3;ja;nein;-1", "4;si;no;10", "5;a;b;9", "6;c;d;-1"]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    data = text_csv(path, text="a", second="b", label="stars", test_fraction=0.5, separator=";")
    assert data.train.inputs.first == ["no", "non", "nein", "no", "b", "d"]
    assert data.train.inputs.second == ["yes", "oui", "ja", "si", "a", "c"]
    assert data.classes == ("-1", "9", "10")  # by size, not by the alphabet
    assert data.train.targets.tolist() == [2, 1, 0, 2, 1, 0]
    first = text_csv(path, text="id", label=None, separator=";").train.inputs.first
    assert first == ["1", "2", "3", "4", "5", "6"]


def test_quotes_as_characters(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text('text\tlabel\n"open\tyes\nhe said "no" twice\tno\n', encoding="utf-8")
    data = text_csv(path, label=None, test_fraction=0.5, quotes=False)
    assert data.train.inputs.first == ['"open', 'he said "no" twice']
    with pytest.raises(UserError, match=r"line 2.*data\.source\.quotes=false"):
        text_csv(path, label=None, test_fraction=0.5)


CODES = ("01", "1", "010", "10", "11")
WORDS = ("01", "1", "NA", "none", "null")


def test_classes_have_one_order_however_they_are_found() -> None:
    for expected in (CODES, WORDS, ("-1", "+1", "1", "2")):
        for found in permutations(expected):
            assert in_class_order(found) == expected


@pytest.mark.slow
def test_classes_have_one_order_in_every_process(tmp_path: Path) -> None:
    """Python draws a hash seed for each process, on which the order of a set of strings depends."""
    for name, labels in {"codes.csv": CODES, "words.csv": WORDS}.items():
        write_csv(tmp_path / name, [(f"text {i}", label) for i, label in enumerate(5 * labels)])
    program = (
        "from distillery.data.sources.text_files import text_csv\n"
        "print(*(text_csv(name).classes for name in ('codes.csv', 'words.csv')))"
    )
    for seed in range(5):
        env = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.stdout == f"{CODES} {WORDS}\n", run.stderr


def test_values_are_taken_as_they_are_written(tmp_path: Path) -> None:
    """Labels that look like dates, long numbers or other types keep their text; a field may be of any length."""
    long = "the film is good " * 9000
    path = write_csv(tmp_path / "a[1] x::b*.csv", [(long, "01"), ("nan", "1"), ("", "1"), ("2019-01-01", "01")])
    data = text_csv(path, drop_empty=True, test_fraction=0.67)
    assert data.train.inputs.first == [long, "nan", "2019-01-01"]
    for labels in (["1", "one"], ["1", "1.5"], ["2019-01-01", "2019-01-02"], ["False", "True"], ["1", str(10**23)]):
        values = [json.loads(label) if label[-1].isdigit() and "-" not in label else label for label in labels]
        rows = [{"text": f"2020-01-0{i}", "label": label} for i, label in enumerate(2 * values, 1)]
        data = jsonl(write_jsonl(tmp_path / "[2].jsonl", rows), test_fraction=0.5)
        assert data.classes == tuple(labels)
        assert data.train.inputs.first == [f"2020-01-0{i}" for i in range(1, 5)]


def test_any_field_that_pythons_csv_module_writes_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(0)
    pieces = [
        '"',
        '""',
        ",",
        ";",
        "\n",
        "\r\n",
        "\r",
        "\t",
        " ",
        "'",
        "#",
        "\\",
        "NA",
        "nan",
        "01",
        "1e5",
        "é",
        "\u2028",
        "🙂",
    ]
    fields = ["x" + "".join(rng.choices(pieces, k=rng.randrange(6))) for _ in range(2000)]
    for name in ("own.csv", "own.tsv"):
        rows = list(zip(fields[::2], fields[1::2], strict=True))
        data = text_csv(write_csv(tmp_path / name, rows, ("a", "b")), "a", None, "b", test_fraction=0.5)
        read = list(zip(data.train.inputs.first, data.train.inputs.second, strict=True))
        assert read == list(dict.fromkeys(rows))


def test_the_test_split_is_cut_by_class_always_alike(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [(f"text {i}", "rare" if i % 10 == 0 else "often") for i in range(100)])
    data = text_csv(path)
    assert sorted(data.train.indices.tolist() + data.test.indices.tolist()) == list(range(100))
    assert torch.bincount(data.test.targets[data.test.indices]).tolist() == [18, 2]
    assert torch.equal(text_csv(path).test.indices, data.test.indices)
    assert "20 texts drawn from train" in data.remarks[0]
    with pytest.raises(UserError, match=r"test_fraction=0\.01: Cannot draw 1 of 100"):
        text_csv(path, test_fraction=0.01)
    with pytest.raises(UserError, match=r"data\.source\.test"):
        text_csv(path, test_fraction=0)


def test_numbers_and_texts_without_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [(f"text {i}", i / 4) for i in range(20)])
    data = text_csv(path, regression=True)
    assert data.classes == ()
    assert data.train.targets.dtype == torch.float32
    assert data.train.targets.tolist() == [i / 4 for i in range(20)]
    assert len(data.test.indices) == 4
    plain = text_csv(path, label=None)
    assert plain.classes == ()
    assert plain.train.targets.tolist() == [0] * 20
    assert plain.train.targets.dtype == torch.int64
    assert len(plain.test.indices) == 4
    with pytest.raises(UserError, match=r"column 'text' is not a number in 20 rows \(line 2, 3, 4, …\): 'text 0'"):
        text_csv(path, label="text", regression=True)
    write_csv(path, [("a", "1"), ("b", "nan")])
    with pytest.raises(UserError, match=r"1 row \(line 3\): 'nan'"):
        text_csv(path, regression=True)


def test_duplicates_are_left_out_and_counted(tmp_path: Path) -> None:
    train = [("a", 0), ("b", 1), ("a", 0), ("c", 0), ("c", 1), ("d", 0), ("e", 1), ("f", 1), ("b", 1)]
    val = [("e", 1), ("t", 0), ("v", 0), ("v", 0)]
    test = [("t", 0), ("d", 1), ("u", 1), ("u", 1)]
    paths = {
        part: write_csv(tmp_path / f"{part}.csv", rows)
        for part, rows in {"train": train, "val": val, "test": test}.items()
    }
    data = text_csv(paths["train"], val=paths["val"], test=paths["test"])
    assert data.val is not None
    assert labelled(data, data.test) == [("t", "0"), ("d", "1"), ("u", "1")]
    assert labelled(data, data.val) == [("e", "1"), ("v", "0")]
    assert labelled(data, data.train) == [("a", "0"), ("b", "1"), ("f", "1")]
    assert data.remarks == (
        "test: 1 repeated texts and 0 with contradictory labels left out",
        "val: 1 repeated texts and 0 with contradictory labels left out",
        "val: 1 texts that are also in test left out",
        "train: 2 repeated texts and 2 with contradictory labels left out",
        "train: 1 texts that are also in test left out",
        "train: 1 texts that are also in val left out",
    )
    few = write_csv(tmp_path / "few.csv", [("a", 0), ("b", 1)])
    with pytest.raises(UserError, match=r"few\.csv' has no text left .*train.*2 texts that are also in test"):
        text_csv(few, test=paths["train"])


def test_a_pair_is_repeated_when_both_texts_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", [("a", "b", 0), ("a", "c", 1), ("a", "b", 0)], ("text", "other", "label"))
    data = text_csv(
        path, second="other", test=write_csv(tmp_path / "t.csv", [("a", "d", 1)], ("text", "other", "label"))
    )
    assert list(zip(data.train.inputs.first, data.train.inputs.second, strict=True)) == [("a", "b"), ("a", "c")]


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    for options, words in [
        ({"text": "Text"}, r"data\.source\.text=Text: '.*own\.csv' has no such column\. Did you mean 'text'"),
        ({"label": "labels"}, r"data\.source\.label=labels: .*Did you mean 'label'"),
        ({"second": "zzz"}, r"data\.source\.second=zzz: .*Choose from: label, text"),
        (
            {"classes": ["neg", "positive"]},
            r"the 2 classes in 2 rows \(line 2, 4\): 'pos' \(1\), 'neutral' \(1\)\. Did",
        ),
        ({"classes": ["neg", "neg"]}, "names a class twice"),
        ({"classes": ["neg", "pos", "neutral"], "regression": True}, "regression and data.source.classes exclude"),
        ({"label": None, "regression": True}, "regression and data.source.label=null exclude"),
        ({"separator": "||"}, r"data\.source\.separator='\|\|' must be a single character"),
    ]:
        path = write_csv(tmp_path / "own.csv", ROWS)
        with pytest.raises(UserError, match=words):
            text_csv(path, **options)


def test_given_classes_keep_their_order(tmp_path: Path, test_file: Path) -> None:
    path = write_csv(tmp_path / "own.csv", ROWS)
    data = text_csv(path, test=test_file, classes=["pos", "unseen", "neg", "neutral"])
    assert data.classes == ("pos", "unseen", "neg", "neutral")
    assert data.train.targets.tolist() == [0, 2, 3, 2]


def test_a_label_of_the_test_texts_alone_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own.csv", ROWS)
    other = write_csv(tmp_path / "held.csv", [("fine", "pos"), ("poor", "negative")])
    with pytest.raises(UserError, match=r"held\.csv': .*1 row \(line 3\): 'negative' \(1\)\. Did you mean 'neg'"):
        text_csv(path, test=other)


def test_empty_texts_are_refused_or_left_out(tmp_path: Path) -> None:
    rows = [("a", "x"), ("two\nlines", "y"), ("", "x"), ("  ", "y"), ("b", "y"), ("\t", "x"), ("", "y")]
    path = write_csv(tmp_path / "own.csv", rows)
    # The second text has two lines, so that the third row stands in line 5.
    with pytest.raises(UserError, match=r"empty in 4 rows \(line 5, 6, 8, …\).*data\.source\.drop_empty=true"):
        text_csv(path)
    data = text_csv(path, drop_empty=True, test_fraction=0.67)
    assert data.train.inputs.first == ["a", "two\nlines", "b"]
    assert "train: 4 rows with an empty text left out" in data.remarks
    path = write_csv(tmp_path / "own.csv", [("a", "b", "0"), ("a", "", "1")], ("text", "second", "label"))
    with pytest.raises(UserError, match=r"empty in 1 row \(line 3\)"):
        text_csv(path, second="second")
    path.write_text('text\na\n \n""\nb\n')  # a blank line is no row, and an empty text in quotes is one
    with pytest.raises(UserError, match=r"empty in 1 row \(line 4\)"):
        text_csv(path, label=None)


def test_files_that_are_no_table_are_refused_with_the_line(tmp_path: Path) -> None:
    for content, words in [
        ("", "is empty"),
        ("text,label\n", "is empty"),
        ("text,label\na,b\nc\n", r"line 3: 1 fields, but the header has 2"),
        ('text,label\n"a\nb",c\n\na, b,c\n', r"line 5: 3 fields.*contains ',' in quotes"),
        ("text,text\na,b\n", "two columns of the same name"),
        ("text,label\na,\nb,\n", r"no text has a label to test on\. Set data\.source\.test to a labelled file"),
        ("text,label\na,b\nc,b\n", r"labels are all \['b'\]; at least two"),
        ('text,label\n"a" b,c\n', r"line 2: .*quotes=false"),
        ('text,label\na,b\n"c,d\n', r"line 3: .*quotes=false"),
    ]:
        path = tmp_path / "own.csv"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=words) as caught:
            text_csv(path)
        assert "own.csv" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for read in (text_csv, jsonl):
        (tmp_path / "reviews.csv").touch()
        with pytest.raises(UserError, match=r"reviws.csv' cannot be read: .*Did you mean 'reviews.csv'"):
            read(tmp_path / "reviws.csv")
        with pytest.raises(UserError, match=r"a' cannot be read: there is no such file\. Nor is there any in"):
            read(tmp_path / "nowhere" / "a")
        (tmp_path / "latin").write_bytes("text,label\nné,a\n".encode("latin-1"))
        with pytest.raises(UserError, match=r"latin' .*line 2 is not UTF-8.*'né,a'.*data\.source\.encoding=cp1252"):
            read(tmp_path / "latin")
        with pytest.raises(UserError, match=r"no such encoding\. Did you mean .*'latin1'"):
            read(tmp_path / "latin", encoding="latin11")
        with pytest.raises(UserError, match=r"cannot be read: .*'ascii' codec.*data\.source\.encoding"):
            read(tmp_path / "latin", encoding="ascii")
        (tmp_path / "wide").write_bytes("text,label\nné,a\n".encode("utf-16-le"))
        with pytest.raises(UserError, match=r"NUL bytes\. Try data\.source\.encoding=utf-16-le"):
            read(tmp_path / "wide")


def test_encodings(tmp_path: Path) -> None:
    path, rows = tmp_path / "own.csv", [*ROWS[:2], ("née", "neg"), ("名前", "pos")]
    content = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows)
    for encoding, given, remark in [
        ("utf-8-sig", None, ""),
        ("utf-8-sig", "utf-8", ""),
        ("utf-16", None, "is read as UTF-16, as its byte order mark says"),
        ("utf-32", None, "is read as UTF-32, as its byte order mark says"),
        ("utf-16-be", "utf-16-be", ""),
        ("gb18030", "gb18030", ""),
    ]:
        path.write_bytes(content.encode(encoding))
        data = text_csv(path, encoding=given, test_fraction=0.5)
        assert data.train.inputs.first == [text for text, _ in rows]
        assert remark in data.remarks[0]
        assert len(data.remarks) == (2 if remark else 1)
        lines = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
        path.write_bytes(lines.encode(encoding))
        assert jsonl(path, encoding=given, test_fraction=0.5).train.inputs.first == [text for text, _ in rows]


def test_another_separator_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    for separator, shown in [(";", r"\"data\.source\.separator=';'\""), ("\t", r"\"data\.source\.separator=\\t\"")]:
        rows = [*(f"a, b, {i}{separator}{i % 2}" for i in range(10)), f'"quoted"{separator}0']
        path.write_text("\n".join([f"text{separator}label", *rows]), encoding="utf-8")
        with pytest.raises(UserError, match=rf"single column, .*{shown}"):
            text_csv(path)
        assert text_csv(path, separator=separator.replace("\t", r"\t")).classes == ("0", "1")


def test_labels_that_look_like_something_else_are_said(tmp_path: Path) -> None:
    for labels, remark in [
        (["pos", "neg", "Pos ", "neg"], "only by case or blanks: 'Pos' and 'pos'"),
        (["ｖery good", "Very  Good", "bad", "bad"], "only by case or blanks: 'Very  Good' and 'ｖery good'"),
        (["0.5", "1", "0.5", "1"], "fractions, taken for 2 classes; .*task=regression data.source.regression=true"),
        (["1.5", "2.5", "3.5", "1.5"], None),
    ]:
        path = write_csv(tmp_path / "own.csv", [(f"text {i}", label) for i, label in enumerate(labels)])
        if remark is None:
            with pytest.raises(UserError, match=r"taken for 3 classes.*task=regression data\.source\.regression=true"):
                text_csv(path)
        else:
            assert re.search(remark, text_csv(path, test_fraction=0.75).remarks[0])
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate([1, 2.0, 1.0, 2])]
    assert jsonl(write_jsonl(tmp_path / "own.jsonl", rows), test_fraction=0.5).classes == ("1", "2")


def test_half_of_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path) -> None:
    path, half = tmp_path / "own.jsonl", "cut \ud83d"
    plain = [{"text": f"😀 {i}", "second": "b", "label": f"{i % 2}"} for i in range(4)]
    for column in ("text", "second", "label"):
        rows = [*plain, {"text": "x", "second": "y", "label": "0", column: half}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = jsonl(path, second="second", test_fraction=0.6)
        assert "1 lines with half of a surrogate pair, read as U+FFFD; the first is 5" in data.remarks[0]
        found = (data.train.inputs.first[4], data.train.inputs.second[4], data.classes[-1 if column == "label" else 0])
        assert found["text second label".split().index(column)] == "cut \ufffd"
        assert data.train.inputs.first[0] == "😀 0"
    rows = [{"words": ["a", half], "tags": ["O", half]}, {"words": ["b"], "tags": ["O"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = jsonl(path, words="words", label="tags", test_fraction=0.5)
    assert (data.train.inputs.first[0], data.classes) == (["a", "cut \ufffd"], ("O", "cut \ufffd"))


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b", "label": 10}, {"label": 9, "text": "null", "more": [1]}, {"text": "c", "label": 10}]
    data = jsonl(write_jsonl(tmp_path / "own.jsonl", rows), test_fraction=0.67)
    assert data.train.inputs.first == ["a\u2028b", "null", "c"]
    assert data.classes == ("9", "10")
    assert data.train.targets.tolist() == [1, 0, 1]
    spaced = tmp_path / "spaced.jsonl"
    spaced.write_text(
        "\n" + (tmp_path / "own.jsonl").read_text(encoding="utf-8").replace("\n", "\n \n"), encoding="utf-8"
    )
    assert jsonl(spaced, test_fraction=0.67).train.inputs.first == data.train.inputs.first
    spaced.write_text("\n{}\n\n[]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"spaced\.jsonl', line 4: it must be a JSON object"):
        jsonl(spaced)
    spaced.write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"spaced\.jsonl' is empty: it must have a JSON object on each line"):
        jsonl(spaced)
    pairs = [{"a": f"a{i}", "b": f"b{i}", "score": i / 2} for i in range(10)]
    data = jsonl(write_jsonl(tmp_path / "pairs.jsonl", pairs), "a", label="score", second="b", regression=True)
    assert data.train.inputs.second == [f"b{i}" for i in range(10)]
    assert data.train.targets.tolist() == [i / 2 for i in range(10)]


TAGGED = [
    {"words": ["Ann", "lives", "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]},
    {"words": ["It", "rains"], "tags": ["O", "O"]},
    {"words": ["It", "rains"], "tags": ["O", "O"]},
    {"words": ["Bo", "Li"], "tags": ["B-PER", "I-PER"]},
]


def test_words_with_a_label_each(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", TAGGED)
    test = write_jsonl(tmp_path / "test.jsonl", [{"words": ["Ann"], "tags": ["B-PER"]}])
    data = jsonl(path, words="words", label="tags", test=test)
    assert data.classes == ("B-LOC", "B-PER", "I-PER", "O")
    assert data.train.inputs.first == [row["words"] for row in (TAGGED[0], TAGGED[1], TAGGED[3])]
    assert data.train.inputs.labels == [[1, 3, 3, 0], [3, 3], [1, 2]]
    assert data.train.targets.tolist() == [0, 0, 0]
    assert data.test.inputs.labels == [[1]]
    assert data.remarks == ("train: 1 repeated texts and 0 with contradictory labels left out",)


def test_words_and_labels_that_do_not_agree(tmp_path: Path) -> None:
    for row, words in [
        ({"words": ["a", "b"], "tags": ["O"]}, "line 5: 2 words, but 1 labels in column 'tags'"),
        ({"words": ["a", "b"], "tags": "O O"}, "line 5: 2 words, but 'O O' in column"),
        ({"words": "a b", "tags": ["O", "O"]}, r"column 'words' is not a list of words in 1 row \(line 5\): 'a b'"),
        ({"words": ["a", " "], "tags": ["O", "O"]}, "not a list of words"),
        ({"words": [], "tags": []}, r"empty in 1 row \(line 5\)"),
        ({"tags": []}, r"empty in 1 row \(line 5\)"),
        ({"words": ["a", "b"], "tags": ["O", None]}, r"a word has no label in column 'tags' in 1 row \(line 5\)"),
    ]:
        path = write_jsonl(tmp_path / "own.jsonl", [*TAGGED, row])
        with pytest.raises(UserError, match=words):
            jsonl(path, words="words", label="tags")


def test_a_tag_outside_the_set(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", TAGGED)
    with pytest.raises(UserError, match=r"3 classes in 1 row \(line 4\): 'I-PER' \(1\)\. Did you mean 'B-PER'"):
        jsonl(path, words="words", label="tags", classes=["O", "B-PER", "B-LOC"])


def test_wrong_lines_of_json(tmp_path: Path) -> None:
    for line, options, words in [
        ("{'text': 1}", {}, "line 2: not valid JSON"),
        ('["a", "b"]', {}, r"line 2: it must be a JSON object, not '\[\"a\""),
        ('{"text": "b", "label": NaN}', {"test": "own.jsonl"}, r"column 'label' has no label in 1 row \(line 2\)"),
        ('{"text": "b"} {"text": "c"}', {}, "line 2: not valid JSON .*Extra data"),
        ('{"text": "b", "text": "c", "label": "x"}', {}, "line 2: .*a key occurs twice: text, text, label"),
        ("[" * 10**6, {}, "line 2: not valid JSON .*recursion"),
        ('{"text": 7, "label": "x"}', {}, r"column 'text' is not text in 1 row \(line 2\): 7"),
        ('{"text": "b"}', {"test": "own.jsonl"}, r"column 'label' has no label in 1 row \(line 2\)"),
        ('{"text": "b", "label": ["x"]}', {}, "more than one label.*data.source.words"),
        ('{"text": "b", "label": "x"}', {"words": "text", "second": "text"}, "words and data.source.second exclude"),
        ('{"text": "b", "label": "x"}', {"label": "tags"}, "has no such column"),
    ]:
        path = tmp_path / "own.jsonl"
        path.write_text('{"text": "a", "label": "y"}\n' + line + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=words):
            jsonl(path, **options | ({"test": path} if "test" in options else {}))
