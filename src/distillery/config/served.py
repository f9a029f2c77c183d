"""Config → the teachers that a server runs."""

import os
from collections.abc import Mapping

from omegaconf import DictConfig
from torch import Tensor

from distillery.config.networks import is_cached
from distillery.config.optim import updates
from distillery.core.errors import UserError, named
from distillery.core.roles import SERVED, role_of
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
