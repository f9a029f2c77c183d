"""Whole runs on the student's own texts: what is logged, resumed in the middle of a round, and refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distillery.config.check import check
from distillery.config.check_rollouts import ends_of
from distillery.core.errors import UserError
from distillery.results.record import RunRecord
from distillery.results.report.write import write_report
from distillery.runs.export.transformers_folder import export_for_transformers as export
from distillery.runs.job import resumed
from distillery.runs.run import Result, train
from fixtures.building import build
from fixtures.conversations import chat_data, turns, write_chat_tokenizer
from fixtures.documents import TINY_STUDENT, tiny_llama, write_bpe
from fixtures.runs import Died, Dies, config, sha256
from fixtures.texts import write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores", "ignore:Step .*student's own texts")
SIZES = {"train": 40, "val": 8, "test": 16, "terms": 2, "digits": 1}
OWN = ("rollouts=on_policy", "rollouts.new_tokens=6", "loss/response=[reverse_kl]")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sums")
    write_bpe(folder / "bpe")
    return [
        "data=arithmetic",
        *(f"data.source.{key}={value}" for key, value in SIZES.items()),
        f"data.tokenizer='{folder / 'bpe'}'",
        "data.batch_size=4",
        "task=causal_lm",
        "task.exact_match=true",
        "model/student=causal_lm",
        *TINY_STUDENT,
        "optim=adamw",
        "optim.optimizer.lr=1e-2",
        "logger=csv",
        "callbacks.scale_report=null",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=5",
    ]


@pytest.fixture(scope="module")
def teacher(sums: list[str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    own = [*sums, "model/teacher=none"]
    return train(config(tmp_path_factory.mktemp("teacher"), *own), own)


def student(folder: Path, sums: list[str], teacher: Result, *given: str, callbacks: Sequence[Any] = ()) -> Result:
    own = [*sums, "model/teacher=run", f"teachers.main.weights='{teacher.folder}'", "seed=1", *OWN, *given]
    return train(config(folder, *own), own, callbacks)


@pytest.mark.slow
def test_it_is_logged_recorded_and_reported(sums: list[str], teacher: Result, tmp_path: Path) -> None:
    result = student(
        tmp_path / "run", sums, teacher, "rollouts.share={schedule: linear, start: 0.2, end: 1, epochs: 1}"
    )
    lines = pd.read_csv(next((tmp_path / "run" / "metrics").rglob("metrics.csv")))
    for name in ("tokens", "truncated", "entropy", "repeated", "generating", "kl_first", "kl_last"):
        values = lines[f"rollouts/{name}"].dropna()
        assert len(values) >= 2
        assert (values >= 0).all()
    assert lines["train/rollouts.share"].dropna().iloc[-1] == 1
    assert any("T=1, top_p=1, top_k=all" in remark for remark in result.record.remarks)
    # the share of exact answers is that of transformers' own greedy texts
    out = export(teacher.folder, tmp_path / "exported")
    net, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    split = teacher.parts.data.raw.test
    right = 0
    for position in split.indices.tolist():
        prompt, answer = split.inputs.first[position], split.inputs.completions[position]
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        end = tokenizer.eos_token_id
        whole = net.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)
        wanted = [*tokenizer(answer)["input_ids"], end]
        right += whole[0, ids.shape[1] :].tolist()[: len(wanted)] == wanted
    assert teacher.record.metrics["last"]["exact_match"] == right / len(split.indices)
    table = write_report([result.folder], tmp_path / "out", "Sums").table.set_index("method")
    record = RunRecord.read(result.folder)
    assert table.loc["rkl", "exact_match"] == record.metrics["last"]["exact_match"]
    assert table.loc["teacher", "exact_match"] == right / len(split.indices)
    assert "exact %" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_run_that_is_resumed_in_the_middle_of_a_round_ends_bit_equal(
    sums: list[str], teacher: Result, tmp_path: Path
) -> None:
    """Rounds of two updates, each of two batches; the texts that are left were drawn by a student that is no more."""
    given = ["rollouts.updates=2", "trainer.accumulate_grad_batches=2", "rollouts.share=0.7", "data.batch_size=2"]
    given += ["loss/response=[reverse_kl,sampled_kl]", "loss.sampled_kl.estimator=policy_gradient"]
    given += ["loss.sampled_kl.discount=0.9", "loss.sampled_kl.clip=0.2"]
    whole = student(tmp_path / "whole", sums, teacher, *given)
    often = ["callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=1"]
    for died in (3, 7):
        folder = tmp_path / str(died)
        with pytest.raises(Died):
            student(folder, sums, teacher, *given, *often, callbacks=[Dies(died)])
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == died
        torch.manual_seed(99)
        assert train(resumed(folder, [])).record.status == "finished"
        assert sha256(folder / "student.safetensors") == sha256(whole.folder / "student.safetensors"), died


@pytest.mark.slow
def test_a_warm_start_is_a_stage(sums: list[str], teacher: Result, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher 'main' has signals only for the data's texts"):
        student(tmp_path / "run", sums, teacher, "teachers.main.cache=true")
    result = student(tmp_path / "run", sums, teacher, "stages=on_policy", "task.weight=0.5")
    lines = pd.read_csv(next((tmp_path / "run" / "metrics").rglob("metrics.csv")))
    tokens = lines.loc[lines["rollouts/tokens"].notna(), "step"]
    assert tokens.min() > result.record.data["train"] / 4  # in the first epoch there are none


def test_the_tokens_that_end_a_text(tmp_path: Path) -> None:
    """Trap 4: the tokenizer's, that of a turn (another one in base models), and a pretrained network's own."""
    data = chat_data(tmp_path, write_chat_tokenizer(tmp_path / "own", end="<|end|>"), [{"messages": turns("a", "b")}])
    text, turn, other = data.loaded_tokenizer.convert_tokens_to_ids(["<|end|>", "<|im_end|>", "<|eot_id|>"])
    new = tiny_llama(data.vocab_size)
    assert new.generation_config.eos_token_id == 2  # type: ignore[union-attr]
    assert ends_of(new, data) == sorted([text, turn])
    new.generation_config = GenerationConfig(eos_token_id=[other, turn])
    assert ends_of(new, data) == sorted([text, turn, other])


def test_what_does_not_go_together_is_refused(sums: list[str], tmp_path: Path) -> None:
    def refused(message: str, *given: str) -> None:
        with pytest.raises(UserError, match=message):
            build(config(tmp_path / "run", *sums, "model/teacher=ema", *given))

    own = OWN
    refused(
        r"rollouts\.new_tokens=61: together with the longest prompt, of 4 tokens.*64 tokens that the student.* 60 at",
        *own[:1],
        "rollouts.new_tokens=61",
        *own[2:],
    )
    short = tiny_llama(330, max_position_embeddings=20)
    short.save_pretrained(tmp_path / "short")
    AutoTokenizer.from_pretrained(next(each for each in sums if "tokenizer" in each).split("'")[1]).save_pretrained(
        tmp_path / "short"
    )
    read = [*sums, "model/teacher=causal_lm", f"teachers.main.net.model='{tmp_path / 'short'}'", "data.max_length=20"]
    with pytest.raises(UserError, match=r"exceeds the 20 tokens that the main network can read\. Set it to 16 at most"):
        build(config(tmp_path / "run", *read, *own, "rollouts.new_tokens=17"))
    refused(r"Set data\.pack=false", *own, "data.pack=true")
    refused("nothing to learn from the student's own texts", *own[:2], "loss/response=[nkd]")
    sampled = [*own[:2], "loss/response=[sampled_kl]"]
    refused(r"Set rollouts\.top_p=1 rollouts\.top_k=0", *sampled, "rollouts.top_k=5")
    refused(
        r"loss\.sampled_kl\.temperature=1 must equal the sampling temperature, rollouts\.temperature=0\.9",
        *sampled,
        "rollouts.temperature=0.9",
    )
    refused("nothing to learn from the data's own texts", *sampled, "task.weight=0", "rollouts.share=0.5")
    refused("has dropout in training", *sampled, "+student.net.config.attention_dropout=0.1")
    refused(r"no `?share_?s|rollouts.*share_s", *own, "+rollouts.share_s=1")
    refused(r"rollouts\.share", *own, "rollouts.share=1.5")
    without = config(tmp_path / "run", *sums, "model/teacher=none", "+rollouts.share=0.5")
    assert check(without).cfg.rollouts is None  # as an experiment has it, with rollouts=none
    with pytest.raises(UserError, match="there are no rollouts, so this would change nothing"):
        check(without, ["+rollouts.share=0.5"])
    refused(r"loss\.sampled_kl\.discount applies to the return of a text", *sampled, "loss.sampled_kl.discount=0.5")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"sentence {number} of some"} for number in range(9)])
    plain = [each for each in sums if not each.startswith(("data=", "data.source"))]
    plain += ["data=plain_text", f"data.source.path='{path}'", "data.pack=false", "data.max_length=32", *own]
    with pytest.raises(UserError, match=r"rollouts\.prompt_tokens=null: these documents have no prompts"):
        build(config(tmp_path / "run", *plain, "model/teacher=ema"))
    rollouts = build(config(tmp_path / "run", *plain, "model/teacher=ema", "rollouts.prompt_tokens=2"))
    assert rollouts.distiller.objective.rollouts.vocabulary == rollouts.data.vocab_size
