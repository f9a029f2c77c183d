"""What is said of the student's own texts: divergence along them, and warnings, against counting by hand."""

import warnings

import pytest
import torch

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
    monitor = RolloutMonitor(truncated=0.5, repeated=0.25)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, (truncated, repeated) in enumerate([(0.4, 0.0), (0.6, 0.2), (0.9, 0.3), (0.9, 0.9)]):
            monitor._warn({"truncated": truncated, "repeated": repeated}, step)
    said = [str(each.message) for each in caught]
    assert len(said) == 2
    assert said[0].startswith("Step 1: 60% of the student's own texts have no end after rollouts.new_tokens")
    assert said[1].startswith("Step 2: 30% of the four-token sequences")
