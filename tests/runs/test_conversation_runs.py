"""A run on conversations, from the command line's settings to the folder that others load."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distillery.runs.export.transformers_folder import export_for_transformers as export
from distillery.runs.run import train
from fixtures.conversations import CHATML, turns, write_chat_tokenizer
from fixtures.documents import TINY_STUDENT, WORDS
from fixtures.runs import config
from fixtures.texts import write_jsonl


@pytest.mark.slow
def test_a_student_learns_to_answer_and_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its tokenizer has no chat template, and ends texts otherwise than the template ends turns."""
    tokenizer = write_chat_tokenizer(tmp_path / "tokenizer", None, end="<|eot_id|>")
    (tmp_path / "chatml.jinja").write_text(CHATML, encoding="utf-8")
    rows = [{"messages": turns(f"{word} {number}?", word)} for word in WORDS[:3] for number in range(30)]
    overrides = [
        "task=causal_lm",
        "data=messages",
        f"data.source.path='{write_jsonl(tmp_path / 'chats.jsonl', rows)}'",
        f"data.tokenizer='{tokenizer}'",
        f"data.template='{tmp_path / 'chatml.jinja'}'",
        "data.template_kwargs={enable_thinking: false}",
        "data.max_length=48",
        "data.batch_size=4",
        "model/student=causal_lm",
        "model/teacher=none",
        *TINY_STUDENT,
        "student.net.config.hidden_size=32",
        "optim=adamw",
        "optim.optimizer.lr=1e-2",
        "logger=none",
        "callbacks.scale_report=null",
        "trainer.max_epochs=8",
    ]
    run = train(config(tmp_path / "run", *overrides), overrides)
    assert any("of the tokens bear loss" in remark for remark in run.record.data["remarks"])
    out = export(run.folder, tmp_path / "out")
    net, own = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for word in WORDS[:3]:
        asked = own.apply_chat_template(turns(f"{word} 31?"), add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            answer = net.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert own.decode(answer) == f"{word}<|im_end|>"
    snippet = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    capsys.readouterr()
    exec(snippet.replace("path/to/this/folder", str(out)).replace("A question", f"{WORDS[0]} 31?"), {})
    assert capsys.readouterr().out == f"{WORDS[0]}\n"
