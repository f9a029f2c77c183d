"""Tokenizers: where they are looked for, and when two of them are the same."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoTokenizer, BertConfig

from distillery.core.errors import UserError
from distillery.data.tokenizers import difference, load_tokenizer, other_vocabulary
from fixtures.texts import VOCABULARY, sentences, write_tokenizer

TEXTS = [text for text, _ in sentences(30)]
TURNED = (*VOCABULARY[:5], *reversed(VOCABULARY[5:]))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("ours")))


class TestLoading:
    def test_from_a_folder(self, tmp_path: Path, ours: Any) -> None:
        found = load_tokenizer(write_tokenizer(tmp_path), "data.tokenizer")
        assert found(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]

    def test_from_a_folder_at_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        write_tokenizer(tmp_path / "own")
        assert len(load_tokenizer("~/own", "data.tokenizer")) == len(VOCABULARY)

    def test_a_name_that_is_not_in_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Offline: the cache and the flag are named, for the hub cannot be asked."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=rf"^data\.tokenizer=user/net: .*{tmp_path}.*HF_HUB_OFFLINE=1.*set HF_HOME"):
            load_tokenizer("user/net", "data.tokenizer")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "minilm").mkdir()
        with pytest.raises(UserError, match=r"^data\.tokenizer=.*: There is no folder .*Did you mean 'minilm'"):
            load_tokenizer(str(tmp_path / "minlm"), "data.tokenizer")

    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        for file, content in [
            ("notes.txt", "no tokenizer"),
            ("tokenizer.json", "{"),
            ("tokenizer_config.json", '{"tokenizer_class": "NoSuchTokenizer"}'),
        ]:
            (tmp_path / file).write_text(content)
            with pytest.raises(UserError, match=r"^input\.tokenizer=.*: there is no tokenizer .*tokenizer\.json, or"):
                load_tokenizer(str(tmp_path), "input.tokenizer")

    def test_a_folder_with_a_network_only(self, tmp_path: Path) -> None:
        """transformers makes a tokenizer out of nothing, to which every word is unknown."""
        BertConfig().save_pretrained(tmp_path)
        assert len(AutoTokenizer.from_pretrained(tmp_path)) == 5
        with pytest.raises(UserError, match=r"^input\.tokenizer=.*: there is no tokenizer .*vocabulary are missing"):
            load_tokenizer(str(tmp_path), "input.tokenizer")


class TestComparison:
    def test_the_same_one_in_two_folders(self, ours: Any, tmp_path: Path) -> None:
        theirs = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
        assert theirs is not ours
        assert difference(ours, theirs, "main", "theirs", TEXTS) is None
        assert difference(ours, theirs, "main", "theirs", [text.split() for text in TEXTS]) is None

    def test_another_one_with_examples(self, ours: Any, tmp_path: Path) -> None:
        for several, shown in [(1, 1), (2, 2), (30, 3)]:
            theirs = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, TURNED))
            texts = [*["?"] * (30 - several), *TEXTS[:several]]  # unknown to both
            said, *lines = str(difference(ours, theirs, "main", "other/net", texts)).split("\n")
            assert "The main network was made for the tokenizer other/net" in said
            assert f"{several} of 30 texts" in said
            assert [line.strip() for line in lines[:-1:3]] == [repr(text[:60]) for text in TEXTS[:shown]]

    def test_the_tokens_of_both_are_shown(self, ours: Any, tmp_path: Path) -> None:
        """Here other ids of the same tokens, and a word that one of them does not know."""
        theirs = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, [*VOCABULARY[:5], "film", "the", "a"]))
        texts = [["the", "films"], "a good film, the good film, a film"]
        lines = str(difference(ours, theirs, "main", "n", texts)).split("\n")[1:-1]
        assert lines == [
            "  'the films'",
            "    data: [CLS] the film ##s [SEP]",
            "    main: [CLS] the [UNK] [SEP]",
            "  'a good film, the good film, a film'",
            "    data: [CLS] a good film , the good film …",
            "    main: [CLS] a [UNK] film [UNK] the [UNK] film …",
        ]

    def test_as_many_tokens_of_which_no_text_has_those_that_differ(self, ours: Any, tmp_path: Path) -> None:
        """Trap 5: id by id, not by their number."""
        same, other = ([*VOCABULARY, *more] for more in (["<a>", "<b>"], ["<b>", "<c>"]))
        one, two = (
            AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / name, words))
            for name, words in (("one", same), ("two", other))
        )
        assert len(one) == len(two)
        assert difference(one, two, "main", "n", TEXTS) is None
        first = len(VOCABULARY)
        assert other_vocabulary(one, two) == (
            f"2 of {first + 2} ids stand for other tokens: {first} is '<a>' and '<b>', {first + 1} is '<b>' and '<c>'"
        )
        assert other_vocabulary(one, one) is other_vocabulary(ours, two) is None  # it may have more
