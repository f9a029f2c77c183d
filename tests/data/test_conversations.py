"""Conversations: what is rendered, what bears loss, and what is refused, against texts written by hand."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from distillery.core.errors import UserError
from distillery.data.sources.messages import messages
from distillery.data.text import TextData
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network
from distillery.tasks.causal_lm import CausalLM
from fixtures.conversations import CHATML, LLAMA3, MARKED, QWEN3, chat_data, turns, write_chat_tokenizer
from fixtures.documents import HARD, batches, tiny_llama, write_bpe
from fixtures.texts import write_jsonl

TWO = turns("Why?", "Grüße, 日本!", "And?", "the laws", system="Be brief.")
END = "<|im_end|>"


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_chat_tokenizer(tmp_path_factory.mktemp("chatml"))


def learnt(data: TextData) -> list[tuple[str, list[str]]]:
    """The text of each row, and those parts of it that bear loss, in the order of the blocks."""
    found: dict[int, tuple[str, list[str]]] = {}
    decode = data.loaded_tokenizer.decode
    for batch in batches(data):
        for row, index in enumerate(batch["index"].tolist()):
            ids, target = batch["input_ids"][row][batch["attention_mask"][row] > 0], batch["target"][row]
            assert (target[len(ids) :] == -100).all()
            parts: list[list[int]] = []
            for at, token in enumerate(target[: len(ids)].tolist()):
                if token != -100:
                    assert token == ids[at]
                    parts += [[]] if target[at - 1] == -100 else []
                    parts[-1].append(token)
            found[index] = decode(ids), [decode(part) for part in parts]
    return [found[index] for index in sorted(found)]


def test_the_loss_is_on_all_turns_of_the_assistant_and_their_ends(tmp_path: Path, chatml: str) -> None:
    """Trap 14, and the line break after the end of a turn bears none; a prompt's turns bear none either."""
    plain = (
        f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\nWhy?{END}\n<|im_start|>assistant\nGrüße, 日本!{END}\n"
    )
    plain += f"<|im_start|>user\nAnd?{END}\n<|im_start|>assistant\nthe laws{END}\n"
    parts = [f"Grüße, 日本!{END}", f"the laws{END}"]
    llama = write_chat_tokenizer(tmp_path / "llama", LLAMA3, "<|eot_id|>")
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>".format
    texts = [header(message["role"], message["content"]) for message in TWO]
    expected = "<|begin_of_text|>" + "".join(texts), ["Grüße, 日本!<|eot_id|>", "the laws<|eot_id|>"]
    rows = [{"messages": TWO}]
    assert learnt(chat_data(tmp_path, llama, rows)) == [expected]
    wide = MARKED.replace("assistant\n{% generation %}", "{% generation %}assistant\n")  # clipped to the turns
    wide = wide.replace("{% endgeneration %}{{ '\n' }}", "\n{% endgeneration %}")
    for given in ({}, {"template": MARKED}, {"template": wide}, {"template": CHATML.replace("'role'", '"role"')}):
        assert learnt(chat_data(tmp_path, chatml, rows, **given)) == [(plain, parts)]
    (tmp_path / "own.jinja").write_text(LLAMA3, encoding="utf-8")
    (in_file,) = learnt(chat_data(tmp_path, chatml, rows, template=str(tmp_path / "own.jinja")))
    assert in_file[0] == expected[0]
    examples = {"prompt": TWO[:4], "completion": [*TWO[4:], *turns("Unanswered?")]}
    assert learnt(chat_data(tmp_path, chatml, [examples])) == [(plain, parts[1:])]


def test_it_is_the_mask_that_transformers_makes(tmp_path: Path, chatml: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatml)
    rows = [{"messages": turns(*HARD, *HARD)}, {"messages": TWO}, {"messages": turns("a", "b")}]
    given: Any = [
        tokenizer.apply_chat_template(
            row["messages"], chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        for row in rows
    ]
    for template in (MARKED, CHATML):
        data = chat_data(tmp_path, chatml, rows, template=template, max_length=500)
        for batch in batches(data):
            for row, index in enumerate(batch["index"].tolist()):
                expected, size = given[index], int(batch["attention_mask"][row].sum())
                assert batch["input_ids"][row, :size].tolist() == expected["input_ids"]
                assert (batch["target"][row, :size] != -100).int().tolist() == expected["assistant_masks"]


def test_bytes_are_those_of_what_is_learnt(tmp_path: Path, chatml: str) -> None:
    """And the same tokens bear loss packed or not; the end of a turn, which is also the padding, as often as it is."""
    rows = [{"messages": turns(*HARD, *HARD)}, {"messages": TWO}, {"messages": turns("a", "b")}]
    said = [turn["content"] for row in rows for turn in row["messages"] if turn["role"] == "assistant"]
    found = []
    for pack in (False, True):
        data = chat_data(tmp_path, chatml, rows, max_length=500, pack=pack)
        bearing = [(batch, batch["target"] != -100) for batch in batches(data)]
        assert sum(int(batch["bytes"][bears].sum()) for batch, bears in bearing) == sum(
            len(each.encode()) for each in said
        )
        found.append(sorted(token for batch, bears in bearing for token in batch["target"][bears].tolist()))
        end = data.loaded_tokenizer.pad_token_id
        assert end == data.loaded_tokenizer.eos_token_id
        assert found[-1].count(end) == len(said)
    assert found[0] == found[1]


def test_turns_that_are_rendered_otherwise_later_are_documents_of_their_own(tmp_path: Path) -> None:
    """With a template that drops think-spans of earlier turns, each turn is learnt as it is generated."""
    qwen = write_chat_tokenizer(tmp_path / "qwen", QWEN3)
    rows = [{"messages": turns("Why?", "<think>\nhm\n</think>\n\nSo.", "And?", "<think>\nthe\n</think>\n\nNo.")}]
    user, assistant = "<|im_start|>user\n{}<|im_end|>\n".format, "<|im_start|>assistant\n{}<|im_end|>\n".format
    first, last = "<think>\nhm\n</think>\n\nSo.", "<think>\nthe\n</think>\n\nNo."
    second = user("Why?") + assistant("So.") + user("And?") + assistant(last)
    once = user("Why?") + assistant(first)
    data = chat_data(tmp_path, qwen, rows)
    assert learnt(data) == [(second, [last + END]), (once, [first + END])]
    assert any(remark.startswith("test: 2 documents of 1 conversations, ") for remark in data.remarks)
    masked = chat_data(tmp_path, qwen, rows, think="mask")
    assert learnt(masked) == [(second, [f"No.{END}"]), (once, [f"So.{END}"])]
    without = [{"messages": turns("Why?", "So.")}]
    empty = "<think>\n\n</think>\n\n"
    for given, part in (
        ({}, empty + "So."),
        ({"template_kwargs": {"enable_thinking": False}}, "So."),  # which the generation prompt then has
        ({"think": "mask"}, "So."),
    ):
        assert learnt(chat_data(tmp_path, qwen, without, **given)) == [
            (user("Why?") + assistant(f"{empty}So."), [part + END])
        ], given
    prints = {chat_data(tmp_path, qwen, without, **given).fingerprint for given in ({}, {"think": "mask"})}
    assert len(prints) == 2


def test_the_plan_shows_how_conversations_are_rendered(tmp_path: Path, chatml: str) -> None:
    train = write_jsonl(tmp_path / "all.jsonl", [{"messages": turns(str(i), "b")} for i in range(10)])
    for template, ended in ((CHATML, True), (CHATML.replace("<|im_end|>", ""), False)):
        data = chat_data(tmp_path, chatml, [], template=template, source=partial(messages, train))
        remarks = "\n".join(data.remarks)
        assert "the first conversation begins with '<|im_start|>user\\n0" in remarks
        assert ("no special token ends an assistant turn" in remarks) != ended


def test_rendered_texts_are_not_begun_twice(tmp_path: Path) -> None:
    """Trap 6: the template writes the token with which the tokenizer itself begins other texts."""
    llama = write_chat_tokenizer(tmp_path / "llama", LLAMA3, "<|eot_id|>", begins=True)
    rows: list[dict[str, Any]] = [{"messages": TWO}, {"prompt": "a", "completion": "b"}]
    found = [text for text, _ in learnt(chat_data(tmp_path, llama, rows))]
    assert [text.count("<|begin_of_text|>") for text in found] == [1, 1]
    assert all(text.startswith("<|begin_of_text|>") for text in found)


def test_signals_of_another_template_are_of_other_texts(tmp_path: Path, chatml: str) -> None:
    """Trap 15: a teacher's cache has the template in its key, and what it is given; so it is with packing."""
    rows = [{"messages": turns("a", "b")}] * 4

    def differs(**given: Any) -> set[str]:
        there, here = (chat_data(tmp_path, chatml, rows, **each).seen_by_teacher() for each in ({}, given))
        return {what for what in there if there[what] != here[what]} - {"data"}

    assert differs() == set()
    assert (
        differs(template=CHATML + "\n")
        == differs(template_kwargs={"a": 1})
        == differs(think="mask")
        == {"chat template"}
    )
    assert differs(pack=True) == differs(max_length=63) == differs(too_long="split") == {"layout"}


def test_the_date_is_always_the_same(tmp_path: Path, chatml: str) -> None:
    dated = "{% set today = strftime_now('%d %b %Y') %}{{ today + ' ' + strftime_now(\"%Y-%m-%d\") }}\n" + CHATML
    ((text, _),) = learnt(chat_data(tmp_path, chatml, [{"messages": turns("a", "b")}], template=dated))
    assert text.startswith("26 Jul 2024 2024-07-26\n<|im_start|>user")


def test_think_spans_however_they_begin_and_end(tmp_path: Path, chatml: str) -> None:
    for content, parts in (
        ("<think>a</think> b<think>c</think>", ["b", END]),
        ("a</think>\n b", [f"b{END}"]),  # begun by the generation prompt
        ("b <think>never ended", ["b "]),
        ("<think></think>", [END]),
    ):
        data = chat_data(tmp_path, chatml, [{"messages": turns("x", content)}], think="mask")
        assert learnt(data)[0][1] == parts, content


def test_prompts_and_completions_are_one_text(tmp_path: Path, chatml: str) -> None:
    """Trap 13: the boundary is a place in the text; a prompt that is tokenised by itself has another length."""
    rows = [{"prompt": "the people of the nat", "completion": "ion and states"}]
    ((text, parts),) = learnt(chat_data(tmp_path, chatml, rows))
    assert text == f"the people of the nation and states{END}"
    tokenizer = AutoTokenizer.from_pretrained(chatml)
    whole = tokenizer(text)
    prompt = rows[0]["prompt"]
    first = next(at for at, (_, end) in enumerate(whole.encodings[0].offsets) if end > len(prompt))
    assert first != len(tokenizer(prompt)["input_ids"])  # the case is what it says
    assert parts == [tokenizer.decode(whole["input_ids"][first:])]
    assert parts[0].endswith(f"ion and states{END}")
    no_template = write_bpe(tmp_path / "bpe")
    assert learnt(chat_data(tmp_path, no_template, rows))[0][1][0].endswith("ion and states<|end|>")


def test_left_and_right_padding_give_the_same_values(tmp_path: Path, chatml: str) -> None:
    """Trap 8, in a batch whose padding is the token that ends the turns."""
    data = chat_data(
        tmp_path, chatml, [{"messages": TWO}, {"messages": turns("a", "b")}, {"messages": turns("a", "of")}]
    )
    (right,) = batches(data)
    left = {key: values.clone() for key, values in right.items()}
    for row, size in enumerate(right["attention_mask"].sum(1).tolist()):
        for key in right.keys() - {"index"}:
            left[key][row] = right[key][row].roll(right[key].shape[1] - size)
    net = tiny_llama(data.vocab_size, max_position_embeddings=200).double()
    network, task, losses = Network(net, TextAdapter(net), "student"), CausalLM(), []
    for batch in (left, right):
        rows, labelled = task.rows(network(batch), batch)
        losses.append(task.loss(rows.logits, labelled["target"]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)


def test_what_does_not_fit(tmp_path: Path, chatml: str) -> None:
    long = turns("of the people " * 10, "yes", "and? ", "war " * 30)
    rows = [{"messages": long}, {"messages": turns("a", "b")}]
    (said,) = (each for each in chat_data(tmp_path, chatml, rows, max_length=32).remarks if each.startswith("test: "))
    assert "1 documents are longer and truncated, by " in said
    assert "1 of them keep no token that bears loss and are left out (data.max_length)" in said
    assert len(learnt(chat_data(tmp_path, chatml, rows, max_length=32))) == 1
    (said,) = (
        each
        for each in chat_data(tmp_path, chatml, rows, max_length=32, too_long="split").remarks
        if each.startswith("test: ")
    )
    assert "pieces of 32 tokens bear no loss and are left out" in said
    with pytest.raises(UserError, match=r"1 of 4 conversations have more than 32 tokens"):
        _ = chat_data(tmp_path, chatml, rows, max_length=32, too_long="refuse").splits
    with pytest.raises(UserError, match=r"no token bears loss\. test: 1 documents"):
        _ = chat_data(tmp_path, chatml, rows[:1], max_length=32).splits


def test_refusals(tmp_path: Path, chatml: str) -> None:
    rows = [{"messages": TWO}]
    bare = write_bpe(tmp_path / "bpe")
    endless = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    greedy = MARKED.replace(
        "role'] }}\n{{ m['content'] }}", "role'] }}\n{% generation %}{{ m['content'] }}{% endgeneration %}"
    )
    opened = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    empty = CHATML.replace("{{ m['content'] }}", "")
    strict = "{{ raise_exception('only the user speaks') }}"
    for tokenizer, given, message in (
        (bare, {}, r"data\.tokenizer=.*bpe has no chat template.*data\.template=<file\.jinja>"),
        (bare, {"template": "nowhere.jinja"}, r"data\.template=nowhere\.jinja is neither a Jinja template nor a file"),
        (chatml, {"template": endless}, r"leaves out the end of a turn, so the student would not learn"),
        (chatml, {"template": greedy}, r"marks text outside of the assistant's turns: 'Be brief\.'"),
        (chatml, {"template": opened}, r"renders an assistant turn differently from its generation prompt"),
        (chatml, {"template": empty}, r"leaves out text of the assistant: it renders 'Grüße, 日本!' as '<|im_end|>"),
        (chatml, {"template": strict}, r"cannot render a conversation \(only the user speaks\): \[\{\"role\""),
        (chatml, {"pack": None}, r"'train' has conversations, for task=causal_lm: set data\.pack"),
    ):
        with pytest.raises(UserError, match=message):
            _ = chat_data(tmp_path, tokenizer, rows, **given).splits
    begun = MARKED.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    )  # its mask says where turns begin
    # The mask says where turns begin.
    assert learnt(chat_data(tmp_path, chatml, rows, template=begun))[0][1] == [f"Grüße, 日本!{END}", f"the laws{END}"]
