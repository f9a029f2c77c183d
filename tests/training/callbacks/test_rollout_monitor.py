"""What is said of the student's own texts: divergence along them, and warnings, against counting by hand."""

import time
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from distillery.losses.response.reverse_kl import ReverseKL
from distillery.tasks.causal_lm import CausalLM
from distillery.training.callbacks.rollout_monitor import RolloutMonitor, divergence_by_quarter
from distillery.training.distiller import Distiller
from distillery.training.head_chunks import end_before_heads
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from distillery.training.rollouts import Rollouts
from fixtures.own_texts import END, completions, networks, prompts


def test_divergence_by_quarter() -> None:
    """Of each text's tokens, one after the other; one of a single token is all in its first quarter. Dropout is off."""
    student, teacher = networks(attention_dropout=0.5)
    student.train()
    (batch,) = Rollouts(new_tokens=9, ends=[END], seed=3).draw(student.net, [prompts(2, 5, 3, 4)], 0)
    objective = Objective(CausalLM(), {"rkl": ReverseKL()}, rollouts=Rollouts())
    module = Distiller(student, {"main": teacher}, CausalLM(), objective, Optim(lambda p: torch.optim.SGD(p, lr=1.0)))
    found = divergence_by_quarter(module, batch)
    module.task.rows_per_chunk = 3
    end_before_heads(module.task, {"rkl": ReverseKL()}, student, {"main": teacher}, batch)
    assert student.known_head is not None
    in_chunks = divergence_by_quarter(module, batch)
    assert found is not None
    torch.testing.assert_close(in_chunks, found)
    assert student.net.training
    student.eval()
    quarters: list[list[float]] = [[], [], [], []]
    for row, (size, text) in enumerate(zip((2, 5, 3, 4), completions(batch), strict=True)):
        ids = batch["input_ids"][row : row + 1, : size + len(text)]
        with torch.no_grad():
            ours, theirs = (net(input_ids=ids).logits[0].double().softmax(-1) for net in (student.net, teacher.net))
        for number in range(len(text)):
            s, t = ours[size - 1 + number], theirs[size - 1 + number]
            quarters[int(4 * number / len(text))].append((s * (s / t).log()).sum().item())
    assert found.tolist() == pytest.approx([sum(each) / max(1, len(each)) for each in quarters], abs=1e-5)


def test_it_warns_once_of_each_collapse() -> None:
    good = {"tokens": 40.0, "truncated": 0.5, "repeated": 0.25, "entropy": 0.2, "kl_first": 0.3, "kl_last": 0.6}
    signs = {
        "60% of the student's own texts have no end after rollouts.new_tokens": {"truncated": 0.6},
        "30% of the four-token sequences": {"repeated": 0.3},
        "the tokens of the student's own texts are drawn with an entropy of only 0.19 nats": {"entropy": 0.19},
        "the student's own texts have 121 tokens on average; at first they had 40": {"tokens": 121.0},
        "the student's own texts have 13 tokens on average; at first they had 40": {"tokens": 13.0},
        "the divergence from the teacher grows along the student's own texts, from 0.3 to 0.61": {"kl_last": 0.61},
    }
    bounds = {"truncated": 0.5, "repeated": 0.25, "entropy": 0.2, "length": 3.0, "kl": 2.0}
    for sign, values in signs.items():
        monitor = RolloutMonitor(**bounds)  # type: ignore[arg-type]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor._warn(good, 1)
            monitor._warn(good | {"tokens": 13.4, "kl_first": 0.0, "kl_last": 0.02}, 2)  # too little to say anything
            monitor._warn(good | {"tokens": 119.0}, 3)
            monitor._warn(good | values, 4)
            resumed = RolloutMonitor(**bounds)  # type: ignore[arg-type]
            resumed.load_state_dict(monitor.state_dict())
            resumed._warn(good | values, 5)
        assert len(caught) == 1
        assert str(caught[0].message).startswith(f"Step 4: {sign}")
        monitor.on_stage_end(None, None)  # type: ignore[arg-type]
        monitor._warn(good, 6)
        with pytest.warns(match="Step 7"):
            monitor._warn(good | values, 7)


def test_the_bar_shows_the_share_of_time_that_generation_takes() -> None:
    student, teacher = networks()
    objective = Objective(CausalLM(), {"rkl": ReverseKL()}, rollouts=(rollouts := Rollouts(new_tokens=3, ends=[END])))
    module = Distiller(student, {"main": teacher}, CausalLM(), objective, Optim(lambda p: torch.optim.SGD(p, lr=1.0)))
    batch = prompts(2, 5, 3)
    shown: list[float] = []
    spent: list[float] = []

    class Bar(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            assert rollouts.last is not None
            spent.append(rollouts.last.seconds)
            shown.append(trainer.progress_bar_metrics["generating"])

    trainer = L.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[RolloutMonitor(every_n_steps=1, repeated=1.0, truncated=1.0), Bar()],
    )  # fmt: skip
    begun = time.monotonic()
    trainer.fit(module, DataLoader([batch, batch], batch_size=None))  # type: ignore[arg-type]
    assert all(0 < share < 1 for share in shown)
    assert sum(spent) / (time.monotonic() - begun) <= max(shown)
