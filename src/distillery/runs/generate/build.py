"""Config → what `distill-generate` needs: a teacher that writes texts, a recipe, and the price of the model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import torch
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig, OmegaConf
from pydantic import FiniteFloat, NonNegativeInt, PositiveInt

from distillery.config.check_networks import check_teachers
from distillery.config.check_rollouts import ends_with
from distillery.config.check_texts import positions_of
from distillery.config.instantiate import make
from distillery.config.networks import build_teacher, complete, run_folder_of
from distillery.config.served import client_of
from distillery.config.spec import MAX_SEED, check_section, kinds
from distillery.config.students import source_tokenizer
from distillery.config.targets import check_settings, check_target
from distillery.core.errors import UserError
from distillery.core.roles import FROZEN, SERVED, role_of
from distillery.data.chat_template import chat_template
from distillery.data.text import TextData
from distillery.models.text.generation import can_generate
from distillery.runs.generate.endpoint import Endpoint
from distillery.runs.generate.generate import Settings
from distillery.runs.generate.local import LocalTeacher
from distillery.runs.generate.price import Price, price_of
from distillery.runs.generate.recipes.recipe import Recipe
from distillery.runs.generate.writer import Writer
from distillery.tasks.causal_lm import CausalLM
from distillery.training.rollouts import Rollouts

TEACHER = "main"
KEY = "OPENAI_API_KEY"  # the environment variable in which the OpenAI client looks for a key
Money = Annotated[FiniteFloat, Ge(0)]
Rate = Annotated[FiniteFloat, Gt(0)]


class PriceSettings(TypedDict):
    """US dollars per million tokens."""

    input: Money
    output: Money


class GenerateSettings(TypedDict, total=False):
    """Of `configs/generate.yaml`, beside its sections and what recipes read."""

    out: str
    samples: PositiveInt
    temperature: Annotated[FiniteFloat, Ge(0)] | None
    top_p: Annotated[FiniteFloat, Gt(0), Le(1)] | None
    max_tokens: PositiveInt | None
    parameters: Mapping[str, Any]
    top_logprobs: NonNegativeInt
    seed: Annotated[int, Ge(0), Le(MAX_SEED)]
    budget: Money | None
    price: Mapping[str, Any] | None
    pilot: NonNegativeInt
    plan: bool
    requests_per_minute: Rate | None
    tokens_per_minute: Rate | None
    licence: str | None
    template: str | None
    template_kwargs: Mapping[str, Any] | None
    at_once: PositiveInt


class Parts(NamedTuple):
    """What `generate` and `plan` take."""

    writer: Writer
    recipe: Recipe
    price: Price
    settings: Settings


def build(cfg: DictConfig) -> Parts:
    """The parts of a command; a server is asked whether it serves the model, and a network is loaded.

    Raises:
        UserError: a setting of another type, a recipe's that it refuses, no such server or model, or a teacher that
            writes no texts.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plain |= check_settings("", {key: plain[key] for key in kinds(GenerateSettings)}, kinds(GenerateSettings))
    if plain["price"] is not None:
        plain["price"] = check_section("price", plain["price"], PriceSettings)
    recipe: Recipe = make("generate", OmegaConf.create(check_target("generate", plain["generate"])))
    settings = Settings(**{name: plain[name] for name in Settings.__dataclass_fields__} | {"out": Path(plain["out"])})
    nodes = {TEACHER: plain["teachers"].get(TEACHER, {"none": True})}
    node = OmegaConf.create(check_teachers(nodes, None, (), chosen=True)[TEACHER])
    given = {name: plain[name] for name in ("temperature", "top_p", "max_tokens") if plain[name] is not None}
    parameters = {**given, **plain["parameters"]}
    if role_of(node) == SERVED:
        if node.client.api_key_env is None and KEY in os.environ:
            node.client.api_key_env = KEY
        writer: Writer = Endpoint(client_of(node), node.model, parameters, plain["top_logprobs"])
        return Parts(writer, recipe, price_of(node.model, plain["price"]), settings)
    if role_of(node) != FROZEN:
        raise UserError(
            "distill-generate: choose a teacher that can write: model/teacher=served (or base_url=… model=…), "
            "model/teacher=run or model/teacher=causal_lm."
        )
    if plain["top_logprobs"]:
        raise UserError("top_logprobs: they are kept of a served teacher. One in this process trains students itself.")
    return Parts(_local(node, plain, parameters), recipe, Price(source="runs here and costs nothing"), settings)


def _local(node: DictConfig, plain: Mapping[str, Any], parameters: Mapping[str, Any]) -> LocalTeacher:
    """The teacher in this process, on a GPU if there is one."""
    known = {"temperature", "top_p", "top_k", "max_tokens"}
    if unknown := sorted(parameters.keys() - known):
        raise UserError(f"parameters.{unknown[0]}: a teacher in this process knows {', '.join(sorted(known))}.")
    if parameters.get("max_tokens") is None:
        raise UserError("max_tokens: a teacher in this process needs a bound of its texts, such as 512.")
    data, task = _data_of(node), CausalLM()
    whole = complete(node, data, task, TEACHER)
    teacher = build_teacher(whole, TEACHER)
    teacher.place(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not can_generate(teacher.net):
        raise UserError(f"distill-generate: a {type(teacher.net).__name__} generates no texts. Choose a causal model.")
    tokenizer = data.loaded_tokenizer
    template = chat_template(tokenizer, plain["template"], plain["template_kwargs"])
    greedy = parameters.get("temperature") == 0
    law = Rollouts(
        new_tokens=parameters["max_tokens"],
        temperature=1.0 if greedy else parameters.get("temperature", 1.0),
        top_p=parameters.get("top_p", 1.0),
        top_k=1 if greedy else parameters.get("top_k", 0),
        ends=ends_with(teacher.net, tokenizer, template),
        seed=plain["seed"],
    )
    law.vocabulary = task.outputs(data)
    name = str(whole.net.model if whole.weights == "pretrained" else whole.weights)
    return LocalTeacher(teacher, name, tokenizer, law, template, positions_of(teacher.net), plain["at_once"])


def _data_of(teacher: DictConfig) -> TextData:
    """Data without texts, which have the teacher's tokenizer."""

    def none() -> Any:
        raise AssertionError("these data are never read")

    return TextData(
        none, tokenizer=_tokenizer(teacher), pack=False, batch_size=1, eval_batch_size=1, seed=0, val_size=0
    )


def _tokenizer(teacher: DictConfig) -> str:
    """The teacher's own."""
    if own := teacher.input.get("tokenizer"):
        return str(own)
    if teacher.weights == "pretrained":
        return str(teacher.net.model)
    if teacher.weights is None:
        raise UserError("teachers.main.weights: name the run folder of the teacher.")
    return source_tokenizer(run_folder_of(teacher.weights))
