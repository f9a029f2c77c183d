"""Next tokens: rows, score and what must not depend on batches, packing and padding, against loops and transformers."""

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.config.check_texts import check_lengths, check_one_way
from distillery.core.errors import UserError
from distillery.data.text import TextData
from distillery.losses.response.kd import KD
from distillery.losses.response.reverse_kl import ReverseKL
from distillery.losses.response.sampled_kl import SampledKL
from distillery.losses.signals import Signals
from distillery.models.adapters import TextAdapter
from distillery.models.taps.end_before_head import before_heads
from distillery.models.taps.network import Network
from distillery.models.text.transformer import transformer
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.evaluate import evaluate
from distillery.teachers.frozen import Teacher
from distillery.training.distiller import Distiller
from distillery.training.head_chunks import end_before_heads
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from distillery.training.update_counts import UpdateCounts
from fixtures.documents import HARD, TINY, batches, document_data, documents, tiny_llama, write_bpe

TEXTS = [*documents(8, longest=30), *HARD]
VOCABULARY = 7
# Two blocks: two documents of 3 and 2 tokens, and one of 2 with padding. The end of a text is also the padding: 6.
BATCH = {
    "input_ids": torch.tensor([[1, 2, 6, 3, 6], [4, 6, 6, 6, 6]]),
    "position_ids": torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]),
    "target": torch.tensor([[-100, 2, 6, -100, 6], [-100, 6, -100, -100, -100]]),
    "bytes": torch.tensor([[3, 1, 0, 5, 0], [2, 0, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    "index": torch.tensor([30, 10]),
}
PLACES = [(0, 0, 2), (0, 1, 6), (0, 3, 6), (1, 0, 6)]  # block, where the logits stand, target


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def size(bpe: str) -> int:
    return document_data(bpe, TEXTS).vocab_size


def network(net: nn.Module, name: str = "student") -> Network:
    return Network(net, TextAdapter(net), name)


def logits(blocks: int = 2) -> Tensor:
    return torch.randn(blocks, 5, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestRows:
    def test_they_are_the_tokens_that_bear_loss_with_the_logits_before_them(self) -> None:
        """The last token of one document does not predict the first of the next, and padding is not predicted."""
        given = logits()
        rows, labelled = CausalLM().rows(Signals(given), BATCH)
        assert rows.logits.tolist() == [given[block, place].tolist() for block, place, _ in PLACES]
        assert labelled["target"].tolist() == [target for *_, target in PLACES]
        assert labelled["position"].tolist() == [place for _, place, _ in PLACES]
        assert labelled["index"].tolist() == [30, 30, 30, 10]
        assert labelled["bytes"].tolist() == [1, 0, 0, 0]

    def test_a_change_of_the_logits_at_one_place_moves_the_loss_of_the_next_token_alone(self) -> None:
        """Trap 1: not shifted, or shifted twice, another loss moves, or the padding's."""
        task = CausalLM()

        def losses(given: Tensor) -> Tensor:
            rows, labelled = task.rows(Signals(given), BATCH)
            return task.loss(rows.logits, labelled["target"])

        for number, (block, place, target) in enumerate(PLACES):
            planted = logits()
            planted[block, place, target] += 3
            moved = (losses(planted) != losses(logits())).tolist()
            assert moved == [row == number for row in range(len(PLACES))]
        free = logits()
        for block, place in ((0, 2), (0, 4), (1, 1), (1, 3)):
            free[block, place] += torch.arange(VOCABULARY)
        assert torch.equal(losses(free), losses(logits()))

    def test_a_network_that_predicts_the_next_token_has_no_loss(self) -> None:
        given = 100 * F.one_hot(BATCH["input_ids"].roll(-1, 1), VOCABULARY).double()
        rows, labelled = CausalLM().rows(Signals(given), BATCH)
        assert CausalLM().loss(rows.logits, labelled["target"]).max() < 1e-30

    def test_the_loss_of_low_precision_is_that_of_its_numbers(self) -> None:
        """Trap 7: the softmax is in float32, and so are the nats that the score adds up."""
        given, target = logits().view(-1, VOCABULARY).bfloat16(), torch.arange(10) % VOCABULARY
        expected = F.cross_entropy(given.double(), target, reduction="none")
        torch.testing.assert_close(CausalLM().loss(given, target).double(), expected, rtol=1e-6, atol=1e-6)

    def test_the_loss_of_a_distribution_is_its_cross_entropy(self) -> None:
        """Of the teacher's tokens, in nats: of the student, and of the teacher itself, which is its entropy."""
        t, s = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.2, 0.5, 0.2, 0.1]], dtype=torch.float64)
        cross, entropy = ((t * CausalLM().loss(p.log().expand(4, 4) + 2, torch.arange(4))).sum().item() for p in (s, t))
        assert (cross, entropy) == pytest.approx((1.369208052, 1.142120043), abs=1e-9)
        assert cross - entropy == pytest.approx(KD(temperature=1.0)(Signals(s.log()[None]), Signals(t.log()[None]), {}))

    def test_the_end_of_a_text_is_learnt_where_it_is_also_the_padding(self) -> None:
        """Trap 4: three ends of three documents are targets; by its id none, or the padding too, would be."""
        _, labelled = CausalLM().rows(Signals(logits()), BATCH)
        assert labelled["target"].tolist().count(6) == 3

    def test_logits_beyond_the_vocabulary_are_left_out(self) -> None:
        """Trap 5: they are in no softmax, whatever they are; 0 in their place would be in it."""
        task = CausalLM()
        assert task.outputs(SimpleNamespace(name="x", classes=(), vocab_size=VOCABULARY, pack=True)) == VOCABULARY
        padded = torch.cat([logits(), torch.full((2, 5, 3), 9.0)], -1)
        rows, labelled = task.rows(Signals(padded), BATCH)
        plain, _ = task.rows(Signals(logits()), BATCH)
        assert torch.equal(rows.logits, plain.logits)
        assert KD()(rows, plain, labelled).abs().max() == 0
        assert (task.fits(10, 7), task.fits(7, 7), task.fits(6, 7)) == (True, True, False)


class TestScore:
    def test_bits_per_byte_is_one_quotient_of_sums(self) -> None:
        """Not the mean of the batches' quotients; the loss of the end of a text counts for neither."""
        task = CausalLM()
        metric = task.metric(VOCABULARY)
        nats = sizes = 0.0
        for seed, part in ((0, slice(0, 1)), (1, slice(0, 2))):
            given = torch.randn(2, 5, VOCABULARY, generator=torch.Generator().manual_seed(seed))
            batch = {key: value[part] for key, value in BATCH.items()} | {"bytes": BATCH["bytes"][part] + seed}
            rows, labelled = task.rows(Signals(given[part]), batch)
            task.score_rows(metric, rows.logits, task.loss(rows.logits, labelled["target"]), labelled)
            for block, place, target in PLACES:
                if block < part.stop and (own := int(batch["bytes"][block, place + 1])):
                    values = given[block, place].double()
                    nats += math.log(values.exp().sum()) - values[target].item()
                    sizes += own
        assert metric.compute().dtype == torch.float64
        assert metric.compute().item() == pytest.approx(nats / math.log(2) / sizes, rel=1e-6)
        assert not metric.higher_is_better

    @pytest.mark.parametrize("pack", [True, False])
    def test_it_is_that_of_transformers_alone(self, bpe: str, size: int, pack: bool) -> None:
        """Each document in pieces by itself, without batches, masks or positions (trap 18)."""
        data, net = document_data(bpe, TEXTS, pack=pack, max_length=16), tiny_llama(size)
        data.setup("test")
        found = evaluate(network(net), data.test_dataloader(), CausalLM(), size)
        nats = lost = 0.0
        total = tokens = 0
        for text in TEXTS:
            ids = [*data.loaded_tokenizer(text)["input_ids"], data.loaded_tokenizer.eos_token_id]
            for start in range(0, len(ids) - 1, 15):
                piece = torch.tensor([ids[start : start + 16]])
                with torch.no_grad():
                    chances = net(input_ids=piece).logits[0, :-1].double().log_softmax(-1)
                own = -chances.gather(1, piece[0, 1:, None]).squeeze(1)
                ends = start + 16 >= len(ids)
                nats += (own[:-1] if ends else own).sum().item()
                lost += own.sum().item()
                tokens += len(own)
            first = data.loaded_tokenizer.convert_ids_to_tokens(ids[0])
            total += len(text.encode()) - len(first)  # byte-level: a letter for each byte
        assert found.score == pytest.approx(nats / math.log(2) / total, rel=1e-6)
        assert found.loss == pytest.approx(lost / tokens, rel=1e-6)
        assert len(found.target) == tokens == sum(len(data.loaded_tokenizer(text)["input_ids"]) for text in TEXTS)


class TestNetworks:
    KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
        ("llama", {}),
        ("qwen3", {"head_dim": 8}),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
        ("gemma3_text", {"head_dim": 8, "sliding_window": 4}),
    )

    def nets(self) -> Iterator[nn.Module]:
        for kind, config in self.KINDS:
            torch.manual_seed(0)
            sizes = config if kind == "gpt2" else TINY | config
            yield transformer(kind, "causal_lm", 40, sizes | {"initializer_range": 0.3}).eval()

    def test_no_document_of_a_block_sees_another(self) -> None:
        """A change in the first leaves the second bit-equal, which is what it is by itself; in training mode too."""
        for net in self.nets():
            own = network(net)
            ids = torch.arange(20)[None] * 7 % 40
            positions = torch.cat([torch.arange(11), torch.arange(9)])[None]
            changed = ids.clone()
            changed[0, 4] += 1
            for training in (False, True):
                net.train(training)
                torch.manual_seed(1)
                before = own({"input_ids": ids, "position_ids": positions, "attention_mask": ids > -1}).logits
                torch.manual_seed(1)
                after = own({"input_ids": changed, "position_ids": positions, "attention_mask": ids > -1}).logits
                assert torch.equal(before[:, 11:], after[:, 11:]), type(net)
                assert not torch.equal(before[:, 4:11], after[:, 4:11])
            net.eval()
            alone = own({"input_ids": ids[:, 11:], "position_ids": positions[:, 11:], "attention_mask": ids}).logits
            both = own({"input_ids": ids, "position_ids": positions, "attention_mask": ids}).logits
            torch.testing.assert_close(both[:, 11:], alone, rtol=1e-4, atol=1e-4)

    def test_left_and_right_padding_give_the_values_without_any(self) -> None:
        """Trap 8, and the loss of the padding is none; gradients too."""

        def gradients(net: nn.Module, logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(CausalLM().loss(logits, target).mean(), [*net.parameters()])

        for net in self.nets():
            own, ids = network(net.double()), torch.arange(9)[None] * 7 % 40
            plain = own({"input_ids": ids, "position_ids": torch.arange(9)[None], "attention_mask": ids}).logits
            expected = gradients(net, plain[0, :-1], ids[0, 1:])
            filling, none = ids.new_full((1, 4), 39), torch.zeros(1, 4, dtype=torch.int64)
            for parts, place in (([filling, ids], slice(4, 13)), ([ids, filling], slice(0, 9))):
                order = (lambda own, rest: [rest, own]) if parts[0] is filling else (lambda own, rest: [own, rest])
                positions = torch.cat(order(torch.arange(9)[None], none), 1)
                padded = torch.cat(parts, 1)
                mask = torch.cat(order(torch.ones(1, 9, dtype=torch.int64), none), 1)
                batch = {"input_ids": padded, "position_ids": positions, "attention_mask": mask}
                found = own(batch).logits
                torch.testing.assert_close(found[:, place], plain, rtol=1e-9, atol=1e-9)
                target = padded.masked_fill(positions == 0, -100)
                sizes = {"target": target, "bytes": mask, "index": torch.tensor([0])}
                rows, labelled = CausalLM().rows(own(batch), batch | sizes)
                assert labelled["target"].tolist() == ids[0, 1:].tolist()
                torch.testing.assert_close(rows.logits, plain[0, :-1], rtol=1e-9, atol=1e-9)
                mine = gradients(net, rows.logits, labelled["target"])
                torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-10)

    def test_networks_that_read_on_or_across_are_refused(self, bpe: str, size: int) -> None:
        data = document_data(bpe, TEXTS)
        data.setup()
        for net in self.nets():
            resized = transformer(net.config.model_type, "causal_lm", size, self._sizes(net))
            check_one_way(network(resized.eval()), data)
        sizes = {**TINY, "max_position_embeddings": 64}
        del sizes["num_key_value_heads"]
        both_ways = network(transformer("bert", "causal_lm", size, sizes).eval())
        with pytest.raises(UserError, match=r"reads the tokens that it has to predict.*is_decoder=true"):
            check_one_way(both_ways, data)
        bloom = {"hidden_size": 16, "n_layer": 2, "n_head": 2}
        for kind, config in (("bert", {**sizes, "is_decoder": True}), ("bloom", bloom)):
            mixing = network(transformer(kind, "causal_lm", size, config).eval())
            check_one_way(mixing, document_data(bpe, TEXTS, pack=False))
            with pytest.raises(UserError, match=r"attends from one document of a block to another.*data\.pack=false"):
                check_one_way(mixing, data)

    def _sizes(self, net: nn.Module) -> dict[str, Any]:
        return next(dict(config if kind == "gpt2" else TINY | config) for kind, config in self.KINDS
                    if kind == net.config.model_type)  # fmt: skip

    def test_texts_past_the_positions_are_refused(self, bpe: str, size: int) -> None:
        with pytest.raises(UserError, match=r"data\.max_length=65: the student network has only 64 positions"):
            check_lengths(network(tiny_llama(size)), document_data(bpe, TEXTS, max_length=65))


class Kept(L.Callback):
    """The losses of each batch."""

    def __init__(self) -> None:
        self.terms: list[Mapping[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.terms.append({name: value.item() for name, value in outputs["terms"].items()})


def update(
    data: TextData, size: int, batch: int, ranks: int = 1, rows: int | None = None
) -> tuple[list[Tensor], dict[str, float]]:
    """The gradient and, of one process, the losses of one update on all blocks, in batches of `batch` of them."""
    student, net = network(tiny_llama(size).double()), tiny_llama(size, seed=1).double()
    teacher, task = Teacher(net, TextAdapter(net)), CausalLM(0.7, rows_per_chunk=rows)
    data.batch_size = batch
    blocks = data.sizes["train"]
    terms = {"kd": KD(1.3), "reverse_kl": ReverseKL(0.4)}
    end_before_heads(task, terms, student, {"main": teacher}, data.example())
    assert (student.known_head is None) == (rows is None)
    module = Distiller(
        student,
        {"main": teacher},
        task,
        Objective(task, terms).double(),
        Optim(lambda parameters: torch.optim.SGD(parameters, lr=1.0)),
        size,
    )
    before = [parameter.detach().clone() for parameter in student.parameters()]
    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=-(-blocks // batch),
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        precision="64-true",
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[kept := Kept()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1 or ranks > 1
    gradients = [old - new.detach() for old, new in zip(before, student.parameters(), strict=True)]
    names = kept.terms[0] if ranks == 1 else ()
    return gradients, {name: sum(line[name] for line in kept.terms) / len(kept.terms) for name in names}


@pytest.mark.filterwarnings("ignore")
def test_an_update_is_the_same_in_any_batches_packed_or_not(bpe: str, size: int) -> None:
    """Trap 3: 1 × 8, 2 × 4 and 8 × 1 documents, packed into fewer blocks or not, to 1e-6 in float64."""
    texts = documents(8, seed=4, longest=16)
    found = {}
    for pack, blocks, batch in ((False, 8, 8), (False, 8, 4), (False, 8, 2), (True, 4, 4), (True, 4, 2)):
        data = document_data(bpe, texts, pack=pack)
        data.setup()
        assert data.sizes["train"] == blocks
        found[pack, batch] = update(data, size, batch)
    gradients, losses = found[False, 8]
    assert min(losses.values()) > 0.01
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for others, values in found.values():
        assert values == pytest.approx(losses, rel=1e-6)
        torch.testing.assert_close(others, gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_update_of_two_processes_is_that_of_one(bpe: str, size: int) -> None:
    """Whose shares of the tokens are unequal."""
    texts = documents(8, seed=4, longest=16)
    expected, _ = update(document_data(bpe, texts, pack=False), size, 8)
    for pack, batch, rows in ((False, 8, None), (False, 4, 5), (True, 4, 5)):
        found, _ = update(document_data(bpe, texts, pack=pack), size, batch, ranks=2, rows=rows)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_one_document_in_a_batch_counts_as_in_one_of_many(bpe: str, size: int) -> None:
    """8 × 1: single blocks, which the loader of a training never serves, through the objective itself."""
    data = document_data(bpe, documents(8, seed=4, longest=16), pack=False)
    student, task, theirs = network(tiny_llama(size).double()), CausalLM(), network(tiny_llama(size, 1).double())
    objective = Objective(task, {"kd": KD()}).double()
    given = list(batches(data, "test"))
    single = [
        {key: value[row : row + 1] for key, value in each.items()}
        for each in given
        for row in range(len(each["index"]))
    ]
    totals = []
    for parts in (given, single):
        counts = UpdateCounts.of(task, parts)
        student.zero_grad()
        for part in parts:
            (objective(student(part), {"main": theirs(part)}, part, counts).total / counts.batches).backward()
        totals.append([parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*totals, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rows", [None, 5])
def test_a_batch_without_a_loss_bearing_token_is_nothing_in_the_graph(size: int, rows: int | None) -> None:
    """Trap 2: finite, 0, with a gradient of 0 of every parameter, which other ranks wait for; counted as no token."""
    task, (student, teacher) = CausalLM(rows_per_chunk=rows), [network(tiny_llama(size, seed)) for seed in (0, 1)]
    batch = {
        "input_ids": torch.tensor([[1, 3], [2, 4]]),
        "position_ids": torch.arange(2).expand(2, 2),
        "attention_mask": torch.ones(2, 2, dtype=torch.int64),
        "target": torch.full((2, 2), -100),
        "bytes": torch.ones(2, 2, dtype=torch.int64),
        "index": torch.arange(2),
    }
    terms = {"kd": KD(), "sampled": SampledKL()}
    end_before_heads(task, terms, student, {"main": teacher}, batch)
    with before_heads([student, teacher]):
        signals = student(batch), {"main": teacher(batch)}
    assert (signals[0].headed is None) == (rows is None)
    losses = Objective(task, terms)(*signals, batch)
    assert {name: value.item() for name, value in losses.terms.items()} == dict.fromkeys(("loss", "task", *terms), 0)
    losses.total.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in student.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(bpe: str, size: int) -> None:
    student, theirs = network(tiny_llama(size)), network(tiny_llama(size))
    terms = {"kd": KD(), "reverse_kl": ReverseKL()}
    for batch in batches(document_data(bpe, TEXTS)):
        losses = Objective(CausalLM(), terms)(student(batch), {"main": theirs(batch)}, batch)
        assert losses.terms["task"] > 1
        assert max(losses.terms[name].abs().item() for name in terms) < 1e-6
        break


def test_refusals() -> None:
    def outputs(**given: Any) -> object:
        return CausalLM().outputs(SimpleNamespace(name="x", classes=(), **given))

    with pytest.raises(UserError, match=r"'x' is set up for another task\. Set data\.pack=true data\.mask=null"):
        outputs(vocab_size=9, pack=None)
    with pytest.raises(UserError, match=r"'x' has no texts\. Choose other data, such as data=plain_text"):
        outputs()
    with pytest.raises(UserError, match=r"this batch has no documents"):
        CausalLM().rows(Signals(logits()), {"target": torch.tensor([1, 2]), "index": torch.tensor([0, 1])})
    with pytest.raises(UserError, match=r"task=causal_lm: the network returns logits \[2, 7\].* head causal_lm"):
        CausalLM().rows(Signals(logits()[:, 0]), BATCH)
