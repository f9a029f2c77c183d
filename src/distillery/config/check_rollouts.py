"""Builds `cfg.rollouts`, and refuses what the student's own texts do not go together with."""

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from distillery.config.check_texts import positions_of
from distillery.config.instantiate import make_scheduled
from distillery.config.stages import Schedules
from distillery.core.errors import UserError
from distillery.data.chat_template import ChatTemplate
from distillery.data.module import Data
from distillery.data.sampler import BatchKey
from distillery.data.text import TextData
from distillery.data.tokens import CHUNK
from distillery.losses.term import Term
from distillery.models.taps.network import Dropout, Network
from distillery.models.text.generation import can_generate
from distillery.tasks.task import Task
from distillery.teachers.frozen import Teacher
from distillery.teachers.served import ServedTeacher
from distillery.training.rollouts import Rollouts

OFF = "or turn on-policy distillation off with rollouts=none"


def build_rollouts(
    cfg: DictConfig, schedules: Schedules, task: Task, data: Data, student: Network, teachers: Iterable[Network]
) -> Rollouts:
    """The rollouts of a run, with the tokens that end a text and the vocabulary.

    Raises:
        UserError: task, data or student cannot have any, or the student or a teacher has too few positions.
    """
    rollouts: Rollouts = make_scheduled("rollouts", cfg, schedules)
    if not task.generates:
        raise UserError(f"rollouts: the networks of this task do not generate text. Set task=causal_lm, {OFF}.")
    assert isinstance(data, TextData)
    if data.pack:
        raise UserError(f"rollouts: the student continues one text per row. Set data.pack=false, {OFF}.")
    if data.others:
        raise UserError(
            "rollouts: the student generates texts in its own tokens, but a teacher has a different tokenizer. Set "
            f"data.tokenizer={next(iter(data.others))} and train the student with it, {OFF}."
        )
    if not can_generate(student.net):
        raise UserError(
            f"rollouts: a {type(student.net).__name__} cannot generate text: it takes no position_ids or has no "
            f"key-value cache. Choose another student, such as model/student=causal_lm, {OFF}."
        )
    longest = _longest_prompt(data, rollouts)
    for network in dict.fromkeys((student, *teachers)):
        positions = network.longest if isinstance(network, ServedTeacher) else positions_of(network.net)
        if positions is not None and longest + rollouts.new_tokens > positions:
            raise UserError(
                f"rollouts.new_tokens={rollouts.new_tokens}: together with the longest prompt, of {longest} tokens, "
                f"this exceeds the {positions} tokens that the {network.name} network can read. Set it to "
                f"{max(0, positions - longest)} at most, or choose a network that reads longer texts "
                "(net.config.max_position_embeddings of a new one, --max-model-len of a served one)."
            )
    rollouts.ends = ends_of(student.net, data) if rollouts.ends is None else list(rollouts.ends)
    rollouts.vocabulary = data.vocab_size
    return rollouts


def refuse_parts(
    rollouts: Rollouts, task: Task, terms: Mapping[str, Term], teachers: Mapping[str, Network], net: Network
) -> None:
    """Refuse losses and teachers that make no sense of the student's own texts.

    Raises:
        UserError: no loss counts on them, or none on the data's; a teacher knows the data's texts alone; or a loss on
            the drawn tokens is of another law than that of sampling.
    """
    if all(term.reads_labels and not term.contract.reads_samples for term in terms.values()):
        raise UserError(
            "rollouts: there is nothing to learn from the student's own texts, because they have no labels. Choose a "
            f"teacher and a loss that needs no labels, such as loss/response=[reverse_kl], {OFF}."
        )
    if rollouts.share < 1 and task.weight == 0 and all(term.contract.reads_samples for term in terms.values()):
        raise UserError(
            f"rollouts.share={rollouts.share:g}: there is nothing to learn from the data's own texts, because "
            f"{' and '.join(f'loss.{name}' for name in terms)} uses only generated tokens. Set task.weight=1 or "
            "rollouts.share=1."
        )
    for name in dict.fromkeys(name for term in terms.values() for name in term.by_teacher):
        teacher = teachers[name]
        if isinstance(teacher, Teacher) and not teacher.reads_any_text:
            raise UserError(
                f"rollouts: teacher {name!r} has signals only for the data's texts. Let its network compute them "
                f"(teachers.{name}.cache=false), {OFF}."
            )
    for name, term in terms.items():
        if term.contract.reads_samples:
            _refuse_other_law(name, term.by_teacher.values(), rollouts, net)


def _refuse_other_law(name: str, terms: Iterable[Term], rollouts: Rollouts, student: Network) -> None:
    if rollouts.top_p < 1 or rollouts.top_k:
        raise UserError(
            f"loss.{name} needs the probability with which each token was sampled, from the whole distribution. Set "
            "rollouts.top_p=1 rollouts.top_k=0."
        )
    for term in terms:
        if getattr(term, "discount", 0.0) and (estimator := getattr(term, "estimator", "")) != "policy_gradient":
            raise UserError(
                f"loss.{name}.discount applies to the return of a text, which estimator={estimator} does not use. Set "
                f"loss.{name}.estimator=policy_gradient, or loss.{name}.discount=0."
            )
        if (own := getattr(term, "temperature", 1.0)) != rollouts.temperature:
            raise UserError(
                f"loss.{name}.temperature={own:g} must equal the sampling temperature, rollouts.temperature="
                f"{rollouts.temperature:g}."
            )
    drops = (
        (isinstance(module, Dropout) and module.p > 0) or getattr(module, "attention_dropout", 0.0)
        for module in student.net.modules()
    )
    if any(isinstance(drop, bool | float | int) and drop for drop in drops):
        raise UserError(
            f"loss.{name}: the student has dropout in training but not when it generates texts, so its probabilities "
            "would differ even without an update. Set the dropout in student.net.config to 0."
        )


def ends_of(net: Any, data: TextData) -> list[int]:
    """The tokens that end a text of the data, see `ends_with`."""
    return ends_with(net, data.loaded_tokenizer, data.rendered_by)


def ends_with(net: Any, tokenizer: Any, template: ChatTemplate | None) -> list[int]:
    """The tokens that end a text: the tokenizer's end-of-text token, those that end an assistant's turn in the chat
    template of conversations, and those that the generation settings of a pretrained network name.

    The settings of a new network are ignored: they are the defaults of its model type, for another vocabulary.
    """
    turns = [] if template is None else tokenizer.convert_tokens_to_ids(sorted(template.ends))
    own = getattr(net, "generation_config", None)
    named = None if own is None or own._from_model_config else own.eos_token_id
    ends = [tokenizer.eos_token_id, *turns, *(named if isinstance(named, list) else [named])]
    return sorted({end for end in ends if end is not None})


def _longest_prompt(data: TextData, rollouts: Rollouts) -> int:
    """The number of tokens of the longest prompt among the training samples."""
    split, dataset = data.splits["train"], data.dataset("train")
    longest = 0
    for indices in split.indices.split(CHUNK):
        batch = dataset[BatchKey(0, indices.tolist(), int(split.inputs.lengths[indices].max()))]
        longest = max(longest, int(rollouts.prompts(batch).max()))
    if longest <= 1 and rollouts.prompt_tokens is None:
        raise UserError(
            "rollouts.prompt_tokens=null: these documents have no prompts. Set it to the number of first tokens that "
            f"serve as a prompt, {OFF}."
        )
    return longest
