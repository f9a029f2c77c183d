"""The frozen teachers of a run: each is loaded and hashed once, whichever stages it teaches in."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distillery.config.networks import build_teacher, is_cached
from distillery.config.spec import FrozenTeacher, kinds
from distillery.core.roles import FROZEN, role_of
from distillery.data.module import Data
from distillery.teachers.frozen import Teacher

# The settings that decide what a teacher computes.
NETWORK = sorted(kinds(FrozenTeacher).keys() - {"role", "cache"})


@dataclass
class _Loaded:
    """A teacher, and the state of the random numbers before and after its network was initialised."""

    teacher: Teacher
    before: Tensor
    after: Tensor


class LoadedTeachers:
    """Hands out teachers by their config. A config that was asked for before gives the same teacher again.

    Stages come one after the other, so they can share a teacher: it is handed out without the taps, the cache and the
    precision that the stage before gave it.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, list[_Loaded]] = {}

    def load_all(self, configs: Mapping[str, Any], data: Data) -> dict[str, Teacher]:
        """The frozen teachers among the completed configs of a stage, by name. Those read from disk are not loaded.

        Args:
            data: see `build_teacher`.
        """
        teachers: dict[str, Teacher] = {}
        for name, cfg in configs.items():
            if role_of(cfg) == FROZEN and not is_cached(cfg):
                teachers[name] = self.load(cfg, name, teachers.values(), data)
        return teachers

    def load(self, cfg: DictConfig, name: str, beside: Collection[Teacher] = (), data: Data | None = None) -> Teacher:
        """The teacher of a completed config.

        Args:
            name: see `Network`.
            beside: the other teachers of the stage. Each has taps of its own, so two of them are never the same.
            data: see `build_teacher`.

        Raises:
            UserError: see `build_teacher`.
        """
        key = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, NETWORK), resolve=True, sort_keys=True)
        before = torch.get_rng_state()
        for loaded in self._loaded.get(key, []):
            if not any(loaded.teacher is other for other in beside):
                if torch.equal(before, loaded.before):  # what is drawn next is the same as if it was initialised here
                    torch.set_rng_state(loaded.after)
                return loaded.teacher.reset(name)
        teacher = build_teacher(cfg, name, data)
        self._loaded.setdefault(key, []).append(_Loaded(teacher, before, torch.get_rng_state()))
        return teacher

    def forget(self, teacher: Teacher) -> None:
        """Release a teacher that is not asked for again."""
        for key, loaded in self._loaded.items():
            self._loaded[key] = [each for each in loaded if each.teacher is not teacher]
