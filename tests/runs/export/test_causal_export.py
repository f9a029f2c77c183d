"""A language model trained by LoRA, from its teacher in int8 to a folder from which a fresh process generates."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from distillery.models.text.transformer import transformer
from distillery.runs.export.transformers_folder import export_for_transformers as export
from distillery.runs.run import train
from distillery.runs.verify_run import student_of, verify_run
from fixtures.documents import END, documents, tiny_llama, write_bpe, write_texts
from fixtures.runs import config

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
tokens = model.generate(**inputs, max_new_tokens=12)
rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
print(json.dumps([logits.tolist(), tokens.tolist(), rendered]))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_a_fresh_process_gives_the_same(tmp_path: Path) -> None:
    write_bpe(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "base")
    base: Any = tiny_llama(len(tokenizer), hidden_size=32)
    base.generation_config = GenerationConfig(do_sample=True, temperature=0.3, top_k=5, eos_token_id=[7, 0])
    base.save_pretrained(tmp_path / "base")
    write_texts(tmp_path / "texts", documents(30))
    own = [
        *("data=plain_text", f"data.source.path={tmp_path}/texts", f"data.tokenizer={tmp_path}/base"),
        *("data.source.test_fraction=0.2", "data.max_length=32", "data.batch_size=4", "task=causal_lm"),
        *("model/student=pretrained_lm", f"student.net.model={tmp_path}/base", "student.lora={r: 4, alpha: 8}"),
        *("model/teacher=causal_lm", f"teachers.main.net.model={tmp_path}/base", "teachers.main.precision=int8"),
        *("optim=adamw", "optim.optimizer.lr=1e-2", "logger=none", "callbacks.scale_report=null"),
        "trainer.max_epochs=2",
    ]
    result = train(config(tmp_path / "run", *own), own)
    assert any("kept as int8: on" in remark for remark in result.record.remarks)
    assert result.record.cost["params"] == sum(parameter.numel() for parameter in base.parameters())
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    trained = [name for name, each in result.parts.distiller.named_parameters() if each.requires_grad]
    assert len(state["state"]) == len(trained) > 0
    assert all("lora_" in name for name in trained)
    assert verify_run(tmp_path / "run").score == pytest.approx(result.record.metrics["last"]["test_score"], rel=1e-9)

    folder = export(tmp_path / "run", tmp_path / "export")
    network: Any = student_of(tmp_path / "run", result.parts.cfg, result.record).net.eval()
    prompt = "union of the people"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        logits, adapted = network(input_ids=ids).logits, result.parts.distiller.student.net.eval()(input_ids=ids).logits
        assert not torch.allclose(logits, base(input_ids=ids).logits, atol=0.1)
        greedy = ids
        while greedy.shape[1] < ids.shape[1] + 12 and greedy[0, -1] != tokenizer.eos_token_id:
            greedy = torch.cat([greedy, network(input_ids=greedy).logits[:, -1:].argmax(-1)], 1)
    torch.testing.assert_close(adapted, logits, rtol=1e-5, atol=1e-5)
    ran = [sys.executable, "-c", FRESH, str(folder), prompt]
    answered = subprocess.run(ran, capture_output=True, text=True, check=True).stdout
    theirs, tokens, rendered = json.loads(answered.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(theirs), logits, rtol=1e-5, atol=1e-5)
    assert tokens == greedy.tolist()
    assert rendered == "user: a\n"
    saved = json.loads((folder / "generation_config.json").read_text())
    assert {key: saved.get(key) for key in ("eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k")} == {
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.convert_tokens_to_ids(END),
        "do_sample": None,
        "temperature": None,
        "top_k": None,
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "merged; `r=4`, `alpha=8`" in card
    snippet = re.findall(r"```python\n(.*?)```", card, re.S)[0].replace("path/to/this/folder", str(folder))
    exec(compile(snippet, "card", "exec"), {})
    again: Any = transformer(str(folder), "causal_lm", pretrained=True)
    assert torch.equal(again.eval()(input_ids=ids).logits, logits)
