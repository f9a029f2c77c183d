"""The data of stages: each data set is read once, and narrowed to the samples that are easy for a teacher."""

from omegaconf import OmegaConf
from torch import Tensor

from distillery.config.build import build_data, stage_data, stored_teachers, with_targets
from distillery.config.instantiate import make_scheduled
from distillery.config.loaded_teachers import LoadedTeachers
from distillery.config.networks import complete_teacher
from distillery.config.stages import Stage, stage_teachers
from distillery.config.teacher_classes import fit_classes
from distillery.core.errors import UserError
from distillery.core.roles import FROZEN, role_of
from distillery.data.module import Data
from distillery.teachers.curriculum import confidences, easiest


class StageData:
    """Hands out data by the settings of a stage. Stages with the same settings share them.

    Args:
        loaded: the teachers that the run has loaded so far.
    """

    def __init__(self, loaded: LoadedTeachers) -> None:
        self._loaded = loaded
        self._data: dict[str, Data] = {}
        self._confidences: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # of a teacher in samples, see `curriculum.py`

    def of(self, stage: Stage) -> Data:
        """The data of a stage; with `easiest` without the training samples that are hard for its teacher."""
        key = OmegaConf.to_yaml(stage.cfg.data, resolve=True)
        if key not in self._data:
            self._data[key] = build_data(stage.cfg)
        data = stage_data(stage, self._data[key])
        if data is not self._data[key]:
            key += "labelled"
            data = self._data.setdefault(key, data)
        if stored := stored_teachers(stage.cfg):
            key += OmegaConf.to_yaml(stored, resolve=True)
            if key not in self._data:
                self._data[key] = with_targets(stage.cfg, data)
            data = self._data[key]
        if stage.easiest is None:
            return data
        judged = key + OmegaConf.to_yaml(stage.cfg.teachers, resolve=True)
        if judged not in self._confidences:
            self._confidences[judged] = self._judge(data, stage)
        narrowed = f"{judged}{stage.easiest}"
        if narrowed not in self._data:
            index, confidence, classes = self._confidences[judged]
            self._data[narrowed] = data.narrowed(index[easiest(confidence, classes, stage.easiest)].sort().values)
        return self._data[narrowed]

    def _judge(self, data: Data, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
        """How confident the stage's teacher is of each sample, see `confidences`."""
        teacher = stage.cfg.teachers.get("main")
        if teacher is None or role_of(teacher) != FROZEN or "main" in stage_teachers(stage.cfg):
            raise UserError(
                "easiest: it asks for a frozen teacher, teachers.main, that is there before the run: its confidence "
                "decides which samples are easy."
            )
        task = make_scheduled("task", stage.cfg.task, stage.schedules["task"])
        completed = complete_teacher(teacher, data, task, "main", stage.cfg.student)
        batch = data.example()
        loaded = self._loaded.load(completed, "main", data=data)
        fit_classes(loaded, completed, data, task, task.outputs(data), loaded.shapes(batch).logits, batch)
        if loaded.other_classes:
            raise UserError(f"easiest asks for the teacher's confidence, and it {loaded.other_classes}.")
        return confidences(loaded, data, task)
