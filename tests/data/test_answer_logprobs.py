"""Log-probabilities that came with answers: those of the network that wrote them, found again token by token."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from distillery.core.errors import UserError
from distillery.data.answer_logprobs import number_tokens, read_answer_logprobs
from distillery.data.sources.messages import messages
from distillery.data.text import TextData
from distillery.data.tokens import IGNORED
from distillery.teachers.answers import AnswersTeacher, FromAnswers
from fixtures.conversations import turns, write_chat_tokenizer
from fixtures.documents import HARD, documents, tiny_llama, write_bpe
from fixtures.texts import write_jsonl

K, TOP = 3, 10  # of which up to 7 are special tokens, that stand for no bytes
SAID = [*documents(6, longest=10), *HARD]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers with the likeliest tokens of a network, which reads them as a chat."""
    folder = tmp_path_factory.mktemp("logprobs")
    write_chat_tokenizer(folder / "teacher")
    write_bpe(folder / "other", 290)
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    other = AutoTokenizer.from_pretrained(folder / "other")
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    other.chat_template = tokenizer.chat_template
    other.eos_token = other.pad_token = "<|im_end|>"
    other.save_pretrained(folder / "other")
    rows = [{"messages": turns(f"question {place}", text)} for place, text in enumerate(SAID)]
    write_jsonl(folder / "answers.jsonl", rows)
    logged = [{**row, "logprobs": log(tokenizer, row["messages"])} for row in rows]
    write_jsonl(folder / "logprobs.jsonl", logged)
    write_jsonl(folder / "test.jsonl", [{"messages": turns("a", "b")}])
    return folder


def distributions(tokenizer: Any, conversation: list[dict[str, str]]) -> tuple[list[int], list[int], Tensor]:
    """The tokens before the answer, those of the answer, and the log-probabilities of all tokens at each of these."""
    before = tokenizer.apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer = tokenizer(conversation[1]["content"], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = tiny_llama(len(tokenizer), max_position_embeddings=400)(torch.tensor([[*prompt, *answer]])).logits
    return prompt, answer, logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def bytes_of(tokenizer: Any, id_: int) -> bytes:
    """What a token of a byte-level tokenizer stands for, by its own decoder."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    name = {value: key for key, value in state["model"]["vocab"].items()}.get(id_, "")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
    return bytes(table[character] for character in name) if all(c in table for c in name) else b""


def log(tokenizer: Any, conversation: list[dict[str, str]]) -> list[Any]:
    """As `distill-generate` writes it."""
    _, answer, log_p = distributions(tokenizer, conversation)
    return [
        [
            bytes_of(tokenizer, id_).hex(),
            float(row[id_]),
            [[bytes_of(tokenizer, each).hex(), float(row[each])] for each in row.topk(TOP).indices.tolist()],
        ]
        for id_, row in zip(answer, log_p, strict=True)
    ]


def data_of(folder: Path, tokenizer: str, **given: Any) -> TextData:
    settings: dict[str, Any] = {"batch_size": 3, "eval_batch_size": 3, "seed": 0, "val_size": 0, "max_length": 400}
    source = lambda: messages(folder / "answers.jsonl", test=folder / "test.jsonl")  # noqa: E731
    data = TextData(source, str(folder / tokenizer), **{**settings, "pack": True, "too_long": "truncate", **given})
    data.setup("fit")
    return data


def test_signals_are_those_of_the_network(folder: Path) -> None:
    """In packed blocks, at each token of an answer; nothing is known elsewhere."""
    data = data_of(folder, "teacher")
    number_tokens(data)
    stored = read_answer_logprobs(data, folder / "logprobs.jsonl", K, "teachers.main")
    source, tokenizer = FromAnswers(stored), data.loaded_tokenizer
    expected: dict[tuple[int, ...], Tensor] = {}
    special = torch.tensor([not bytes_of(tokenizer, id_) for id_ in range(len(tokenizer))])
    for place, text in enumerate(SAID):
        prompt, answer, log_p = distributions(tokenizer, turns(f"question {place}", text))
        for at in range(len(answer)):
            expected[(*prompt, *answer[: at + 1])] = log_p[at]
    found = set[tuple[int, ...]]()
    for batch in data.train_dataloader():
        sparse = source.signals(batch).sparse
        assert sparse is not None
        assert sparse.known is not None
        assert sparse.log_tail is not None
        for row, starts in enumerate(batch["position_ids"].tolist()):
            ids = batch["input_ids"][row].tolist()
            for at in sparse.known[row].nonzero().flatten().tolist():
                text = tuple(ids[at - starts[at] : at + 2])
                likeliest = expected[text].masked_fill(special, -torch.inf).topk(K)
                torch.testing.assert_close(sparse.log_p[row, at].double(), likeliest.values, rtol=1e-5, atol=1e-5)
                assert sparse.classes[row, at].tolist() == likeliest.indices.tolist()
                rest = 1 - likeliest.values.exp().sum()
                assert sparse.log_tail[row, at].exp().item() == pytest.approx(rest.item(), rel=1e-4)
                found.add(text)
    assert found == expected.keys()
    assert any("100.0%" not in remark and "% of the tokens that bear loss" in remark for remark in stored.remarks)


def test_tokens_of_another_tokenizer(folder: Path) -> None:
    """Those that stand for the same bytes have the candidates that are tokens there, too: by a loop over all spans."""
    data = data_of(folder, "other", pack=False)
    number_tokens(data)
    stored = read_answer_logprobs(data, folder / "logprobs.jsonl", K, "teachers.main")
    tokens, tokenizer = data.splits["train"].inputs.tokens, data.loaded_tokenizer
    ours = {bytes_of(tokenizer, id_): id_ for id_ in range(len(tokenizer))}
    logged = [json.loads(line) for line in (folder / "logprobs.jsonl").read_text().splitlines()]
    known = 0
    for position in data.training_split().indices.tolist():
        conversation = json.loads(data.raw.train.inputs.first[position])["messages"]
        row = next(each for each in logged if each["messages"] == conversation)
        theirs, end = {}, 0
        for own, log_p, candidates in row["logprobs"]:
            begin, end = end, end + len(own) // 2
            theirs[begin, end] = (log_p, candidates)
        first, length = int(tokens.starts[position]), int(tokens.lengths[position])
        places = [at for at in range(first, first + length) if tokens.columns["target"][at] != IGNORED]
        end = 0
        for at in places:
            text = bytes_of(tokenizer, int(tokens.columns["input_ids"][at]))
            begin, end = end, end + len(text)
            mass: dict[int, float] = {}
            if text and (begin, end) in theirs:
                log_p, candidates = theirs[begin, end]
                for own, value in candidates:
                    if own and (id_ := ours.get(bytes.fromhex(own))) is not None:
                        mass[id_] = math.log(math.exp(mass.get(id_, -math.inf)) + math.exp(value))
                mass.setdefault(ours[text], log_p)
            assert bool(stored.known[at]) == (len(mass) >= K)
            if len(mass) >= K:
                known += 1
                best = sorted(mass, key=lambda id_: -mass[id_])[:K]
                assert stored.classes[at].tolist() == best
                torch.testing.assert_close(stored.log_p[at], torch.tensor([mass[id_] for id_ in best]))
    assert 20 < known < int((tokens.columns["target"] != IGNORED).sum())


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder, "teacher")
    number_tokens(data)
    with pytest.raises(UserError, match=r"main\.path=.*logprob\.jsonl: there is no such file.*logprobs\.jsonl"):
        read_answer_logprobs(data, folder / "logprob.jsonl", K, "teachers.main")
    with pytest.raises(UserError, match=r"line 1: it has no log-probabilities as distill-generate"):
        read_answer_logprobs(data, folder / "answers.jsonl", K, "teachers.main")
    with pytest.raises(UserError, match=r"no log-probabilities for the tokens .*k to 19 or less"):
        read_answer_logprobs(data, folder / "logprobs.jsonl", 20, "teachers.main")
    foreign = [{"messages": turns("x", "y"), "logprobs": [["79", -0.1, [["79", -0.1]]]]}]
    with pytest.raises(UserError, match="0 of which are among its answers"):
        read_answer_logprobs(data, write_jsonl(tmp_path / "foreign.jsonl", foreign), 1, "teachers.main")
    foreign[0]["logprobs"] = [["79", 3.0, [["79", 3.0]]]]
    with pytest.raises(UserError, match="it has no log-probabilities"):
        read_answer_logprobs(data, write_jsonl(tmp_path / "foreign.jsonl", foreign), 1, "teachers.main")


def test_the_teacher_has_no_score(folder: Path) -> None:
    data = data_of(folder, "teacher")
    number_tokens(data)
    stored = read_answer_logprobs(data, folder / "logprobs.jsonl", K, "teachers.main")
    teacher = AnswersTeacher("main", stored, data.vocab_size, "answers")
    assert teacher.evaluation(data, "test", None, None) == "its log-probabilities are those of its own answers"  # type: ignore[arg-type]
    assert str(teacher.training_signals.available) == "the 3 likeliest classes and the mass of the others"  # type: ignore[union-attr]
