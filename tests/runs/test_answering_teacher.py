"""From prompts over a server's answers with log-probabilities to a student, by the commands of the guide."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from distillery.data.tokenizers import token_texts
from distillery.results.record import RunRecord
from fixtures.command_line import Cli
from fixtures.conversations import write_chat_tokenizer
from fixtures.documents import TINY_STUDENT, tiny_llama
from fixtures.fake_server import MODEL, running
from fixtures.fake_writer import FakeWriter, Said
from fixtures.texts import write_jsonl

pytestmark = pytest.mark.slow
LENGTH = 10


class Network:
    """Answers as a small network does, with the likeliest tokens."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(write_chat_tokenizer(folder))
        self.net = tiny_llama(len(self.tokenizer), max_position_embeddings=200)
        texts = token_texts(self.tokenizer)
        self.bytes = [text if isinstance(text, bytes) else b"" for text in texts]
        ascii_only = [bool(text) and text.isascii() for text in self.bytes]
        self.allowed = torch.tensor(ascii_only)  # it answers in whole characters

    def __call__(self, body: dict[str, Any]) -> Said:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens, said = [], b""
        for _ in range(LENGTH):
            with torch.no_grad():
                log_p = self.net(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            id_ = int(log_p.masked_fill(~self.allowed, -torch.inf).argmax())
            top = log_p.topk(body["top_logprobs"]).indices.tolist()
            tokens.append([self.bytes[id_], float(log_p[id_]), [(self.bytes[at], float(log_p[at])) for at in top]])
            ids, said = [*ids, id_], said + self.bytes[id_]
        return said.decode(), "stop", tokens


def test_from_prompts_to_a_student(cli: Cli, tmp_path: Path) -> None:
    """The student learns the teacher's distribution; where nothing is known, the teacher says nothing.

    Another one learns the texts alone, cleaned of what the test set has.
    """
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {number}"} for number in range(24)])
    with running(FakeWriter(Network(tmp_path / "teacher"))) as server:
        words = [f"prompts={prompts}", f"base_url={server.url}/v1", f"model={MODEL}", "out=answers"]
        code, said = cli("generate", *words, "top_logprobs=12", "max_tokens=10")
    assert code == 0, said
    assert "answers/logprobs.jsonl" in said
    row = json.loads(Path("answers/logprobs.jsonl").read_text().splitlines()[0])
    assert len(row["logprobs"]) == LENGTH
    assert len(row["logprobs"][0][2]) == 12
    write_jsonl(prompts.parent / "test.jsonl", [{"prompt": "question 0", "completion": "the answer"}])
    given = ["task=causal_lm", "task.weight=0", "data=messages", "data.source.path=answers/answers.jsonl"]
    given += [f"data.tokenizer={tmp_path / 'teacher'}", "data.max_length=64", "data.batch_size=4", "optim=adamw"]
    given += ["model/student=causal_lm", *TINY_STUDENT, "model/teacher=answers", "logger=csv", "trainer.max_epochs=8"]
    loss = ["loss/response=[topk_kd]", "loss.topk_kd.k=4", "loss.topk_kd.missing=tail"]
    teacher = ["teachers.main.path=answers/logprobs.jsonl", "teachers.main.k=4", "optim.optimizer.lr=0.01"]
    code, said = cli("train", *given, *teacher, *loss, "hydra.run.dir=run", "trainer.log_every_n_steps=1")
    assert code == 0, said
    assert "of the tokens that bear loss" in said.replace("\n", " ")
    entry = RunRecord.read(Path("run")).teachers["main"]
    assert entry["score"] is None
    assert any("of the probability on average" in remark for remark in RunRecord.read(Path("run")).remarks)
    near = ["near_duplicate_prompts.threshold=null", "near_duplicate_texts.threshold=null"]  # its answers are alike
    code, said = cli(
        "clean", "path=answers/answers.jsonl", f"against={prompts.parent / 'test.jsonl'}", "out=cleaned", *near
    )
    assert (code, "contamination" in said) == (0, True), said
    texts = ["data.source.path=cleaned/clean.jsonl", f"data.source.test={prompts.parent / 'test.jsonl'}"]
    alone = ["model/teacher=none", "task.weight=1", "trainer.max_epochs=1", "hydra.run.dir=alone"]
    code, said = cli("train", *given, *texts, *alone)
    assert (code, "test bits per byte" in said) == (0, True), said
    code, said = cli("train", *given, *teacher, "loss/response=[kd]", "hydra.run.dir=other")
    assert (code, "topk_kd" in said) == (2, True)
    code, said = cli("train", *given, *teacher, *loss, "teachers.main.k=2", "hydra.run.dir=other")
    assert (code, "the teacher gives 2 classes" in said.replace("\n", " ")) == (2, True)
    images = ["model/teacher=answers", "teachers.main.path=answers/logprobs.jsonl", "experiment=digits_demo"]
    code, said = cli("train", *images, "hydra.run.dir=other")
    assert (code, "supports only causal language models" in said.replace("\n", " ")) == (2, True), said
