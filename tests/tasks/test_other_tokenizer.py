"""A teacher that reads the documents of a language model in tokens of its own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distillery.config.check_texts import check_lengths, check_one_way, match_vocabularies
from distillery.core.errors import UserError
from distillery.data.text import TextData
from distillery.data.tokenizers import load_tokenizer, token_texts
from distillery.losses.response.cross_tokenizer import CrossTokenizer
from distillery.losses.response.kd import KD
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.evaluate import evaluate
from distillery.teachers.frozen import Teacher
from distillery.training.objective import Losses, Objective
from distillery.training.update_counts import UpdateCounts
from fixtures.documents import HARD, batches, document_data, documents, tiny_llama, write_bpe

TEXTS = [*documents(8, seed=4, longest=16), *HARD]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    load_tokenizer(write_bpe(folder / "small", 280), "x").save_pretrained(folder / "copy")
    return {"small": str(folder / "small"), "copy": str(folder / "copy"), "large": write_bpe(folder / "large", 360)}


def given(tokenizers: dict[str, str], theirs: str, **settings: object) -> tuple[TextData, CausalLM, Network, Teacher]:
    """Documents with the tokens of both, the task, and two networks; the teacher's has more logits than tokens."""
    data = document_data(tokenizers["small"], TEXTS, **settings)
    data.setup()
    size = data.add_tokenizer(tokenizers[theirs]).vocab_size
    task, student, net = CausalLM(), tiny_llama(data.vocab_size).double(), tiny_llama(size + 5, seed=1).double()
    task.outputs(data)
    teacher = Teacher(net, TextAdapter(net, tokenizers[theirs]), name="main")
    return data, task, Network(student, TextAdapter(student, tokenizers["small"])), teacher


def gradients(
    task: CausalLM, term: Term, student: Network, teacher: Teacher, parts: list[dict[str, Tensor]]
) -> tuple[list[Tensor], Losses]:
    """Of one update on these batches, and the losses of the first."""
    counts, objective = UpdateCounts.of(task, parts), Objective(task, {"term": term}).double()
    student.zero_grad()
    losses = [objective(student(part), {"main": teacher(part)}, part, counts) for part in parts]
    torch.stack([each.raw["term"] for each in losses]).sum().backward()
    return [p.grad.clone() / counts.batches for p in student.parameters() if p.grad is not None], losses[0]


def test_a_copy_of_the_tokenizer_gives_kd(tokenizers: dict[str, str]) -> None:
    """Value and gradient, though the teacher's tokens are aligned by their bytes."""
    data, task, student, teacher = given(tokenizers, "copy")
    term = CrossTokenizer(temperature=2.0, t_squared=True)
    match_vocabularies({"term": term}, {"main": teacher}, data, task)
    parts = list(batches(data))
    found, losses = gradients(task, term, student, teacher, parts)
    assert {key: value.item() for key, value in losses.terms.items() if "." in key} == pytest.approx(
        {"term.one_to_one": 1, "term.aligned": 1, "term.shared_mass": 1}
    )
    plain = Teacher(teacher.net, TextAdapter(teacher.net))
    expected, other = gradients(task, KD(temperature=2.0), student, plain, parts)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses.raw["term"], other.raw["term"], rtol=1e-12, atol=0)


def test_an_update_is_the_same_in_any_batches_packed_or_not(tokenizers: dict[str, str]) -> None:
    found = []
    for pack, batch in ((False, 2), (False, 5), (True, 3)):
        data, task, student, teacher = given(tokenizers, "large", pack=pack, eval_batch_size=batch)
        term = CrossTokenizer()
        match_vocabularies({"term": term}, {"main": teacher}, data, task)
        found.append(gradients(task, term, student, teacher, list(batches(data)))[0])
    assert max(each.abs().max() for each in found[0]) > 1e-3
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-6, atol=1e-8)


def test_the_score_of_a_teacher_is_that_of_its_own_tokens(tokenizers: dict[str, str]) -> None:
    """As where the data have its tokenizer, but for where documents are cut."""
    for length, tolerance in ((256, 1e-9), (24, 0.05)):
        data, task, _, teacher = given(tokenizers, "large", max_length=length)
        score = evaluate(teacher, batches(data), task, None).score
        own, alone = document_data(tokenizers["large"], TEXTS, max_length=length), CausalLM()
        alone.outputs(own)
        plain = Teacher(teacher.net, TextAdapter(teacher.net))
        assert score == pytest.approx(evaluate(plain, batches(own), alone, None).score, rel=tolerance)


def test_what_a_network_reads_is_tried_on_its_own_tokens(tokenizers: dict[str, str]) -> None:
    data, _, _, teacher = given(tokenizers, "large")
    check_one_way(teacher, data)
    check_lengths(teacher, data)
    net = tiny_llama(data.others[tokenizers["large"]].vocab_size, max_position_embeddings=4)
    short = Teacher(net, TextAdapter(net, tokenizers["large"]))
    with pytest.raises(UserError, match=r"has only 4 positions, but a block has up to \d+ tokens in its own tokenizer"):
        check_lengths(short, data)


def test_losses_that_compare_rows_are_refused(tokenizers: dict[str, str], tmp_path: Path) -> None:
    data, task, _, teacher = given(tokenizers, "large")
    several = Several([CrossTokenizer(teacher=name) for name in ("main", "other")], combine="best")
    for term in (KD(), several):
        with pytest.raises(
            UserError, match=r"(?s)texts become other tokens.*loss\.term compares the predictions of both"
        ) as e:
            match_vocabularies({"term": term}, {"main": teacher, "other": teacher}, data, task)
        assert "Use loss/response=[cross_tokenizer]" in str(e.value)
    term = CrossTokenizer()
    match_vocabularies({"term": term}, {"main": teacher}, data, task)
    assert [each.size for each in term.vocabularies] == [data.vocab_size, data.others[tokenizers["large"]].vocab_size]  # type: ignore[union-attr]
    assert len(token_texts(data.loaded_tokenizer)) == data.vocab_size
