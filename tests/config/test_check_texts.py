"""Networks that were made for other texts are refused before training, with examples and numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from distillery.config.check_texts import check_lengths, check_tokenizer, conventions
from distillery.core.errors import UserError
from distillery.data.raw_data import Texts
from distillery.data.text import TextData
from distillery.data.tokenizers import load_tokenizer
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network, probe
from distillery.models.text.bilstm import BiLSTM
from distillery.models.text.transformer import transformer
from distillery.models.weights import save_weights
from distillery.tasks.classification import Classification
from fixtures.building import build
from fixtures.composing import Compose
from fixtures.conversations import CHATML, QWEN3, chat_data, turns, write_chat_tokenizer
from fixtures.documents import document_data, documents, tiny_llama
from fixtures.texts import (
    STILL,
    TINY,
    VOCABULARY,
    bert_overrides,
    sentences,
    text_data,
    tiny_bert,
    write_csv,
    write_tokenizer,
)

TEXTS = [text for text, _ in sentences(40)]
LONG = [*(text for text, _ in sentences(39, longest=35)), "the " * 28]  # the last one has 30 tokens
TURNED = (*VOCABULARY[:5], *reversed(VOCABULARY[5:]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def network(net: nn.Module) -> Network:
    return Network(net, TextAdapter(net), name="main")


def longer(data: TextData, positions: int) -> int:
    """How many of its texts, counted by its own tokenizer, have more tokens than that."""
    return sum(len(ids) > positions for ids in data.loaded_tokenizer(LONG)["input_ids"])


class TestTokenizer:
    def test_the_data_s_own_and_an_equal_one(self, folder: str, tmp_path: Path) -> None:
        data = text_data(folder, Texts(TEXTS))
        check_tokenizer("main", folder, data, Classification())
        check_tokenizer("main", write_tokenizer(tmp_path), data, Classification())

    def test_another_one(self, folder: str, tmp_path: Path) -> None:
        other = write_tokenizer(tmp_path, TURNED)
        with pytest.raises(UserError) as caught:
            check_tokenizer("main", other, text_data(folder, Texts(TEXTS)), Classification())
        lines = str(caught.value).split("\n")
        assert f"The main network was made for the tokenizer {other}" in lines[0]
        assert "40 of 40 texts" in lines[0]
        assert [line.strip() for line in lines[1:-1:3]] == [repr(text[:60]) for text in TEXTS[:3]]
        assert all(line.startswith("    data: [CLS] ") for line in lines[2:-1:3])
        assert all(line.startswith("    main: [CLS] ") for line in lines[3:-1:3])

    def test_one_that_is_not_there(self, folder: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"the main network's input\.tokenizer=.*nowhere"):
            check_tokenizer("main", str(tmp_path / "nowhere"), text_data(folder, Texts(TEXTS)), Classification())

    def test_in_a_build(self, folder: str, compose_train: Compose, tmp_path: Path) -> None:
        rows = write_csv(tmp_path / "own.csv", sentences(60))
        weights = tmp_path / "teacher.safetensors"
        save_weights(tiny_bert(), weights)
        given = [
            "data=text_csv",
            f"data.source.path={rows}",
            f"data.tokenizer={folder}",
            "model/student=transformer",
            *bert_overrides("student"),
            "model/teacher=transformer",
            *bert_overrides("teachers.main"),
            f"teachers.main.weights={weights}",
        ]
        same = build(compose_train(*given, f"teachers.main.input.tokenizer={write_tokenizer(tmp_path / 'same')}"))
        assert not [name for name in same.data.example() if "/" in name]  # no text is tokenised twice
        other = write_tokenizer(tmp_path / "other", TURNED, positions=20)
        given.append(f"teachers.main.input.tokenizer={other}")
        for more in [[], ["loss/relation=[rkd]"], ["loss/feature=[hint]", "loss.hint.layers={embedding: embedding}"]]:
            parts = build(compose_train(*given, *more))
            assert any("has the tokens of" in remark and other in remark for remark in parts.data.remarks)
        tokenizer = AutoTokenizer.from_pretrained(other)
        teacher, data = parts.distiller.teachers["main"], parts.data
        texts = data.raw.train.inputs.first
        for batch in (*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
            own = [texts[index] for index in batch["index"].tolist()]
            with torch.no_grad():
                expected = teacher.net(**tokenizer(own, padding=True, return_tensors="pt")).logits
            torch.testing.assert_close(probe(teacher, batch).logits, expected)
        for more in [["loss/feature=[hidden_mse]"], ["loss/attention=[minilm]"]]:
            with pytest.raises(UserError, match=r"compares tokens .*another tokenizer.*loss/response=\[kd\]"):
                build(compose_train(*given, *more))
        with pytest.raises(UserError, match=r"The student network was made for .*\n(.|\n)*Only a frozen teacher"):
            build(compose_train(*given, f"student.input.tokenizer={other}"))

    def test_a_cache_gives_the_signals_of_the_teacher_s_own_tokens(
        self, folder: str, compose_train: Compose, tmp_path: Path
    ) -> None:
        weights = tmp_path / "teacher.safetensors"
        save_weights(tiny_bert(), weights)
        parts = build(
            compose_train(
                "data=text_csv",
                f"data.source.path={write_csv(tmp_path / 'own.csv', sentences(60))}",
                f"data.tokenizer={folder}",
                "model/student=transformer",
                *bert_overrides("student"),
                "model/teacher=transformer",
                *bert_overrides("teachers.main"),
                f"teachers.main.weights={weights}",
                f"teachers.main.input.tokenizer={write_tokenizer(tmp_path / 'other', TURNED)}",
                "teachers.main.cache=true",
                "loss/relation=[rkd]",
            )
        )
        teacher = parts.distiller.teachers["main"]
        for batch in parts.data.train_dataloader():
            cached, computed = teacher(batch, training=True), probe(teacher, batch)
            torch.testing.assert_close(cached.logits, computed.logits)
            torch.testing.assert_close(cached.layers, computed.layers)

    def test_a_pretrained_network_s_own(self, folder: str, compose_train: Compose, tmp_path: Path) -> None:
        rows, model = write_csv(tmp_path / "own.csv", sentences(60)), tmp_path / "model"
        tiny_bert().save_pretrained(model)
        given = [
            "data=text_csv",
            f"data.source.path={rows}",
            f"data.tokenizer={folder}",
            "model/teacher=none",
            "model/student=transformer",
            f"student.net.model={model}",
            "student.weights=pretrained",
        ]
        write_tokenizer(model)
        build(compose_train(*given))
        load_tokenizer.cache_clear()
        write_tokenizer(model, TURNED)
        with pytest.raises(UserError, match=r"The student network was made for the tokenizer"):
            build(compose_train(*given))
        with pytest.raises(UserError, match=r"^student.net: There is no folder .*nowhere"):
            build(compose_train(*given, "student.net.model=./nowhere", f"student.input.tokenizer={folder}"))


class TestConventions:
    """Trap 6: what teacher and data do otherwise with the same vocabulary."""

    SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind. <|im_end|>\n{% endif %}"

    def said(self, folder: Path, other: str, stops: str | None = None, **given: Any) -> list[str]:
        """Of a teacher whose tokenizer has this template, and which stops at the token `stops`."""
        load_tokenizer.cache_clear()
        own, theirs = write_chat_tokenizer(folder / "own"), write_chat_tokenizer(folder / "theirs", other)
        data = chat_data(folder, own, [{"messages": turns("a", "b")}], **given)
        net = tiny_llama(data.vocab_size)
        if stops is not None:
            net.config.name_or_path = "instructed"
            net.generation_config.eos_token_id = data.loaded_tokenizer.convert_tokens_to_ids([stops])  # type: ignore[union-attr]
        return conventions(Network(net, TextAdapter(net, theirs), name="main"), data)

    def test_the_same(self, tmp_path: Path) -> None:
        assert self.said(tmp_path, CHATML, stops="<|im_end|>") == []
        plain = document_data(str(tmp_path / "own"), documents(4))
        assert conventions(Network(tiny_llama(330), TextAdapter(tiny_llama(330)), name="student"), plain) == []

    def test_another_template_line_by_line(self, tmp_path: Path) -> None:
        (found,) = self.said(tmp_path, self.SYSTEM + CHATML)
        lines = found.splitlines()
        assert lines[0] == "its own chat template renders an example differently from the data's:"
        assert lines[1:3] == ["--- the data's chat template", f"+++ that of {tmp_path / 'theirs'}"]
        assert lines[4:] == [
            "+<|im_start|>system\\n",
            "+Be kind. <|im_end|>\\n",
            " <|im_start|>user\\n",
        ]
        (found,) = self.said(tmp_path, QWEN3)  # drops think-spans of earlier turns
        assert [line for line in found.splitlines()[3:] if line[0] in "+-"] == [
            "-<think>\\n", "-Add.\\n", "-</think>\\n", "-\\n"
        ]  # fmt: skip
        (found,) = self.said(tmp_path, CHATML, template=QWEN3)  # the teacher's own is not the data's
        assert "+<think>\\n" in found
        thinking = {"template": QWEN3, "template_kwargs": {"enable_thinking": False}}
        assert self.said(tmp_path, QWEN3, **thinking) == []
        (found,) = self.said(tmp_path, "{{ raise_exception('no') }}")
        assert "cannot render a conversation (no)" in found

    def test_another_end(self, tmp_path: Path) -> None:
        """A base model stops at another token than an instruction-tuned one."""
        (found,) = self.said(tmp_path, CHATML, stops="<|end|>")
        assert found == "it stops at '<|end|>', but the data's texts end with '<|im_end|>'"
        other = write_chat_tokenizer(tmp_path / "other", CHATML, end="<|eot_id|>")
        data = document_data(str(tmp_path / "own"), documents(4))
        net = tiny_llama(data.vocab_size)
        assert conventions(Network(net, TextAdapter(net, other), name="main"), data) == [
            f"end of a text: '<|im_end|>' in the data, '<|eot_id|>' in the tokenizer {other}"
        ]


class TestLength:
    def test_texts_that_are_too_long_are_counted(self, folder: str) -> None:
        data = text_data(folder, Texts(LONG))
        number = longer(data, 30)
        assert 5 < number < longer(data, 29)  # one has just as many
        words = (
            rf"The main network cannot read the longest text, of {int(data.used_lengths().max())} tokens: .* It has 30 "
            rf"positions, and {2 * number} of 80 texts have more tokens\. Cut them with data\.max_length=30"
        )
        with pytest.raises(UserError, match=words):
            check_lengths(network(tiny_bert(max_position_embeddings=30)), data)
        check_lengths(network(tiny_bert(max_position_embeddings=30)), text_data(folder, Texts(LONG), max_length=30))

    def test_of_a_sentence_encoder(self, folder: str) -> None:
        net = tiny_bert("sentence_embedding", None, max_position_embeddings=30)
        with pytest.raises(UserError, match=r"It has 30 positions.*data\.max_length=30"):
            check_lengths(network(net), text_data(folder, Texts(LONG)))

    def test_of_a_network_that_counts_its_positions_from_two(self, folder: str) -> None:
        """RoBERTa's embeddings have two more than it can use: of 514, 512."""
        settings = TINY | STILL | {"max_position_embeddings": 32, "pad_token_id": 1}
        net = transformer("roberta", "sequence_classification", 2, settings)
        data = text_data(folder, Texts(LONG))
        with pytest.raises(UserError, match=rf"It has 30 positions, and {2 * longer(data, 30)} of 80 texts"):
            check_lengths(network(net), data)
        check_lengths(network(net), text_data(folder, Texts(LONG), max_length=30))

    def test_of_a_network_without_positions(self, folder: str) -> None:
        data = text_data(folder, Texts(LONG))
        check_lengths(network(BiLSTM(TINY["vocab_size"], 2, embedding_width=4, hidden=3)), data)
        net = BiLSTM(TINY["vocab_size"] - 8, 2, embedding_width=4, hidden=3)
        with pytest.raises(UserError, match=r"It has too few positions, and some texts have more tokens"):
            check_lengths(network(net), data)
