"""Config → what `distill-generate` needs: a teacher, the data whose prompts it continues, and the law of sampling."""

from typing import Annotated, Any, NamedTuple, TypedDict

import torch
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig, OmegaConf
from pydantic import NonNegativeInt, PositiveInt

from distillery.config.check_networks import check_teachers
from distillery.config.check_rollouts import ends_of
from distillery.config.check_texts import check_tokenizer, positions_of
from distillery.config.instantiate import make
from distillery.config.networks import build_teacher, complete, run_folder_of
from distillery.config.spec import kinds
from distillery.config.students import source_tokenizer
from distillery.config.targets import check_settings, check_target
from distillery.core.errors import UserError
from distillery.core.roles import FROZEN, role_of
from distillery.data.text import TextData
from distillery.models.text.generation import can_generate
from distillery.tasks.causal_lm import CausalLM
from distillery.teachers.frozen import Teacher
from distillery.training.rollouts import Rollouts

TEACHER = "main"
LAW = ("new_tokens", "temperature", "top_p", "top_k", "seed")  # what `Rollouts` reads


class Settings(TypedDict, total=False):
    """Of `configs/generate.yaml`, beside its sections."""

    out: str
    prompt_tokens: PositiveInt
    samples: PositiveInt
    at_once: PositiveInt
    new_tokens: PositiveInt
    temperature: Annotated[float, Gt(0)]
    top_p: Annotated[float, Gt(0), Le(1)]
    top_k: NonNegativeInt
    seed: Annotated[int, Ge(0)]


class Writer(NamedTuple):
    """Attributes:
    positions: of the teacher's network; None: not known.
    """

    teacher: Teacher
    data: TextData
    law: Rollouts
    positions: int | None


def build_writer(cfg: DictConfig) -> Writer:
    """The teacher, on a GPU if there is one; the data with its tokenizer, unless `data.tokenizer` names another.

    Raises:
        UserError: settings of another type, a teacher that cannot generate, or data that are no documents.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_settings("", {key: plain[key] for key in kinds(Settings)}, kinds(Settings))
    checked = check_teachers({TEACHER: plain["teachers"].get(TEACHER, {"none": True})}, None, (), chosen=True)
    node = OmegaConf.create(checked[TEACHER])
    if role_of(node) != FROZEN:
        raise UserError("distill-generate: choose a frozen teacher, model/teacher=causal_lm or model/teacher=run.")
    plain["data"]["tokenizer"] = plain["data"].get("tokenizer") or _tokenizer(node)
    data = make("data", OmegaConf.create(check_target("data", plain["data"])))
    if not isinstance(data, TextData):
        raise UserError("distill-generate continues texts. Choose others, as data=messages or data=plain_text.")
    task = CausalLM()
    task.outputs(data)
    whole = complete(node, data, task, TEACHER)
    check_tokenizer(TEACHER, whole.input.tokenizer, data, task, frozen=True)
    teacher = build_teacher(whole, TEACHER).to("cuda" if torch.cuda.is_available() else "cpu")
    if not can_generate(teacher.net):
        raise UserError(f"distill-generate: a {type(teacher.net).__name__} generates no texts. Choose a causal model.")
    law = Rollouts(**{key: plain[key] for key in LAW}, ends=ends_of(teacher.net, data))
    law.vocabulary = data.vocab_size
    return Writer(teacher, data, law, positions_of(teacher.net))


def _tokenizer(teacher: DictConfig) -> str:
    """The teacher's own."""
    if own := teacher.input.get("tokenizer"):
        return str(own)
    if teacher.weights == "pretrained":
        return str(teacher.net.model)
    if teacher.weights is None:
        raise UserError("teachers.main.weights: name the run folder of the teacher.")
    return source_tokenizer(run_folder_of(teacher.weights))
