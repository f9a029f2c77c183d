"""Config → the teachers that a server runs, or has run."""

import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from distillery.config.networks import is_cached
from distillery.config.optim import updates
from distillery.core.errors import UserError, named
from distillery.core.roles import ANSWERS, SERVED, role_of
from distillery.data.module import Data
from distillery.tasks.task import Task
from distillery.teachers.frozen import Teacher
from distillery.teachers.served_client import Client


def served_teachers(cfg: DictConfig, data: Data, task: Task, example: Mapping[str, Tensor]) -> dict[str, Teacher]:
    """The teachers of a completed config that servers run, by name. Each is tried on the `example`.

    Raises:
        UserError: with the path of the teacher; see `ServedTeacher`.
    """
    served = {str(name): own for name, own in cfg.teachers.items() if role_of(own) == SERVED and not is_cached(own)}
    for name in served:
        if task.head != "causal_lm":
            raise UserError(
                f"teachers.{name}: model/teacher=served supports only causal language models. Set task=causal_lm."
            )
    if not served:
        return {}
    steps, total = updates(data, cfg.trainer)
    epoch = int(data.order("train")["lengths"][data.splits["train"].indices].sum())
    tokens = epoch * total // steps if total > 0 else epoch
    teachers = {}
    for name, own in served.items():
        try:
            teachers[name] = _build(name, own, data, example, tokens)
        except UserError as error:
            raise named(f"teachers.{name}", error) from None
    return teachers


def number_answers(cfg: DictConfig, data: Data) -> None:
    """Have batches number their tokens, if there are `answering_teachers`.

    Raises:
        UserError: the data have no tokens, or not those of whole documents.
    """
    if names := [name for name, own in cfg.teachers.items() if role_of(own) == ANSWERS]:
        from distillery.data.answer_logprobs import number_tokens
        from distillery.data.text import TextData  # transformers takes seconds: only for texts

        if not isinstance(data, TextData) or data.pack is None:
            raise UserError(
                f"teachers.{names[0]}: model/teacher=answers supports only causal language models. Set task=causal_lm, "
                "and data=messages with the answers.jsonl of this teacher."
            )
        number_tokens(data)


def answering_teachers(cfg: DictConfig, data: Data) -> dict[str, Teacher]:
    """The teachers of a completed config whose log-probabilities were stored with their answers, by name.

    Raises:
        UserError: see `read_answer_logprobs`.
    """
    teachers: dict[str, Teacher] = {}
    for name, own in cfg.teachers.items():
        if role_of(own) == ANSWERS:
            from distillery.data.answer_logprobs import read_answer_logprobs
            from distillery.data.text import TextData
            from distillery.teachers.answers import AnswersTeacher

            assert isinstance(data, TextData), "see `number_answers`"
            stored = read_answer_logprobs(data, Path(own.path), own.k, f"teachers.{name}")
            teachers[str(name)] = AnswersTeacher(str(name), stored, data.vocab_size, f"answers in {own.path}")
    return teachers


def client_of(cfg: DictConfig) -> Client:
    """Sends requests to the server of a teacher's config.

    Raises:
        UserError: the URL is none, or the environment variable with the key is not set.
    """
    settings = cfg.client
    key = os.environ.get(settings.api_key_env or "", "")
    if settings.api_key_env and not key:
        raise UserError(f"client.api_key_env={settings.api_key_env}: this environment variable is not set.")
    return Client(cfg.url, key, settings.concurrent, settings.timeout, settings.patience)


def _build(name: str, cfg: DictConfig, data: Data, example: Mapping[str, Tensor], tokens: int) -> Teacher:
    from distillery.data.text import TextData  # transformers takes seconds: only for texts
    from distillery.teachers.served import Served, ServedTeacher

    assert isinstance(data, TextData)
    served = Served(client_of(cfg), cfg.model, cfg.k, cfg.client.sequences)
    return ServedTeacher(name, served, data.loaded_tokenizer, example, data.limit, tokens)
