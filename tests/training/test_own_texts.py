"""Updates on the student's own texts: accumulated, on several processes, in 16 bits, and stale."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from distillery.data.sources.arithmetic import arithmetic
from distillery.losses import on_policy
from distillery.losses.response.reverse_kl import ReverseKL
from distillery.losses.response.sampled_kl import SampledKL
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.term import Term
from distillery.tasks.causal_lm import CausalLM
from distillery.training.distiller import Distiller
from distillery.training.head_chunks import end_before_heads
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from distillery.training.rollouts import Rollouts
from distillery.training.schedules import Progress, Stairs
from fixtures.documents import document_data, write_bpe
from fixtures.own_texts import networks, prompts


class Sums(L.LightningDataModule):
    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Any:
        return self.data.train_dataloader()


def trained(
    tmp_path: Path,
    batch_size: int,
    accumulated: int,
    rollouts: Rollouts,
    terms: dict[str, Term],
    steps: int = 1,
    precision: Any = "32-true",
    ranks: int = 1,
) -> Distiller:
    """Updates of plain gradient descent on sums."""
    bpe = tmp_path / "bpe"
    if not bpe.exists():
        write_bpe(bpe)
    data = document_data(
        str(bpe), arithmetic(train=16, val=2, test=2), pack=False, too_long="refuse", val_size=None, bucket=0,
        batch_size=batch_size, max_length=32,
    )  # fmt: skip
    data.setup()
    task = CausalLM()
    task.outputs(data)
    rollouts.ends, rollouts.vocabulary = [data.loaded_tokenizer.eos_token_id], data.vocab_size
    student, teacher = networks(data.vocab_size)
    end_before_heads(task, terms, student, {"main": teacher}, prompts(2, 5))
    objective = Objective(task, terms, rollouts=rollouts)
    module = Distiller(student, {"main": teacher}, task, objective, Optim(lambda p: torch.optim.SGD(p, lr=0.5)))
    trainer = L.Trainer(
        max_steps=steps, accumulate_grad_batches=accumulated, precision=precision, logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, accelerator="cpu",
        devices=ranks, strategy="ddp_fork" if ranks > 1 else "auto",
    )  # fmt: skip
    trainer.fit(module, Sums(data))
    return module


def test_an_update_is_the_same_however_its_texts_are_accumulated(tmp_path: Path) -> None:
    """The generated tokens of the whole update are the denominator; the texts have unequal lengths."""

    def terms() -> dict[str, Term]:
        sampled = SampledKL(0.3, estimator="policy_gradient", discount=0.9)
        return {"rkl": ReverseKL(), "topk": TopKKD(k=3, missing="tail", direction="reverse"), "sampled": sampled}

    made = [
        trained(tmp_path, size, accumulated, Rollouts(new_tokens=8, seed=1), terms())
        for size, accumulated in ((8, 1), (4, 2), (2, 4))
    ]
    start = networks(made[0].objective.rollouts.vocabulary or 0)[0]
    for name, parameter in made[0].student.net.named_parameters():
        assert not torch.equal(parameter, start.net.get_parameter(name))
        for other in made[1:]:
            torch.testing.assert_close(other.student.net.get_parameter(name), parameter, rtol=1e-4, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_real_processes_throw_one_coin_and_learn_as_one_does(tmp_path: Path) -> None:
    """Trap 12: updates on given and on own texts; processes that disagreed would learn from other batches."""
    coin = Rollouts(share=0.5, seed=2)
    assert {coin.own(update) for update in range(3)} == {False, True}
    terms = {"rkl": ReverseKL(), "sampled": SampledKL(0.3, estimator="policy_gradient", discount=0.9)}
    one, two = (
        trained(tmp_path, 4, 1, Rollouts(share=0.5, new_tokens=8, seed=2), dict(terms), 3, ranks=ranks)
        for ranks in (1, 2)
    )
    for name, parameter in one.student.net.named_parameters():
        torch.testing.assert_close(two.student.net.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_importance_weights_are_1_before_an_update(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traps 7 and 10: in 16 bits too, where generation rounds otherwise than training; stale texts have other ones."""
    seen: list[Tensor] = []
    policy_gradient = on_policy.policy_gradient

    def noting(log_student: Tensor, log_sampled: Tensor, *others: Any) -> Tensor:
        seen.append((log_student - log_sampled).detach().abs())
        return policy_gradient(log_student, log_sampled, *others)

    monkeypatch.setattr(on_policy, "policy_gradient", noting)
    for discount in (0.0, 0.9):  # in chunks of rows, and all at once
        seen.clear()
        term = SampledKL(estimator="policy_gradient", discount=discount)
        trained(tmp_path, 4, 2, Rollouts(new_tokens=8, updates=2, seed=1), {"sampled": term}, 2, precision)
        assert len(seen) == 4
        assert all(len(each) > 5 and each.dtype == torch.float32 for each in seen)
        assert torch.cat(seen[:2]).max() < 1e-6
        assert min(each.max() for each in seen[2:]) > 1e-3


def test_rounds_of_several_updates_draw_their_texts_together(tmp_path: Path) -> None:
    """Those of the second update are stale: the student that drew them is the first's."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Noting(Rollouts):
        def draw(self, net: nn.Module, batches: Any, update: int) -> Any:
            drawn = super().draw(net, batches, update)
            seen.append((torch.tensor(update), torch.tensor(len(batches))))
            return drawn

    trained(tmp_path, 4, 1, Noting(new_tokens=4, updates=3), {"rkl": ReverseKL()}, steps=4)
    assert [(int(a), int(b)) for a, b in seen] == [(0, 3), (3, 1)]  # an epoch has four
    seen.clear()
    trained(tmp_path, 2, 2, Noting(new_tokens=4, updates=2), {"rkl": ReverseKL()}, steps=4)
    assert [(int(a), int(b)) for a, b in seen] == [(0, 4), (2, 4)]
    seen.clear()
    coin = Rollouts(share=0.5, seed=2)  # trap 12: one for an update, and not for each batch of it
    trained(tmp_path, 2, 2, Noting(new_tokens=4, share=0.5, seed=2), {"rkl": ReverseKL()}, steps=4)
    assert [(int(a), int(b)) for a, b in seen] == [(update, 2) for update in range(4) if coin.own(update)]
    assert [coin.own(update) for update in range(4)] != [coin.own(2 * update) for update in range(4)]


def test_the_share_may_have_a_schedule() -> None:
    rollouts = Rollouts(share=0.0)
    objective = Objective(
        CausalLM(), {"rkl": ReverseKL()}, {"rollouts.share": Stairs((0.0, 0.75), (5.0,), "steps")}, rollouts=rollouts
    )
    objective.follow(Progress(4, 10))
    assert objective.changing() == {"rollouts.share": 0.0}
    objective.follow(Progress(5, 10))
    assert rollouts.share == 0.75
