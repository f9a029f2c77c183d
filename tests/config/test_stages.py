"""`cfg.stages` → whole configs: what a stage names it changes, what it does not name stays."""

from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from distillery.config.check import check
from distillery.config.names import method_name, teachers_of
from distillery.config.spec import Until
from distillery.config.stages import GENERATION, Stage, expanded, stages_of
from distillery.core.errors import UserError
from distillery.results.record import config_hash
from fixtures.cases import each_case
from fixtures.composing import Compose, with_value

RECIPE = ("experiment=digits_demo", "teachers.main.weights=there", "loss/feature=[hint]")


def composed(compose_train: Compose, stages: str, *more: str) -> Any:
    return compose_train(*RECIPE, f"+stages={stages}", *more)


def made(compose_train: Compose, stages: str, *more: str) -> list[Stage]:
    return stages_of(composed(compose_train, stages, *more))


def test_without_stages_there_is_one_without_a_name(compose_train: Compose) -> None:
    spec = check(compose_train(*RECIPE))
    (stage,) = spec.stages
    assert (stage.name, stage.fresh, stage.train) == ("", True, None)
    assert stage.cfg == spec.cfg


def test_what_a_stage_does_not_name_stays(compose_train: Compose) -> None:
    one, two, three = made(
        compose_train,
        "{one: {epochs: 2, loss: {hint: {weight: 7}}, task: {weight: 0}, optim: {optimizer: {lr: 0.5}}, train: ['h*']},"
        " two: {epochs: 3, loss: {kd: {temperature: 2}, hint: {}}, data: {batch_size: 50}}, three: {epochs: 1}}",
    )
    assert [*one.cfg.loss] == ["hint"]
    assert [*two.cfg.loss] == [*three.cfg.loss] == ["kd", "hint"]
    assert (two.cfg.loss.hint.weight, two.cfg.loss.kd.weight, three.cfg.loss.kd.temperature) == (7, 0.9, 2)
    assert [stage.cfg.task.weight for stage in (one, two, three)] == [0, 0, 0]
    assert [stage.cfg.optim.optimizer.lr for stage in (one, two, three)] == [0.5, 0.5, 0.5]
    assert [stage.cfg.data.batch_size for stage in (one, two, three)] == [25, 50, 50]
    assert [stage.cfg.trainer.max_epochs for stage in (one, two, three)] == [2, 3, 1]
    assert [stage.cfg.optim.scheduler.T_max for stage in (one, two, three)] == [2, 3, 1]  # ${trainer.max_epochs}
    assert [stage.fresh for stage in (one, two, three)] == [True, False, False]
    assert [stage.train for stage in (one, two, three)] == [["h*"], None, None]  # but for this


def test_another_target_and_other_layers_replace_the_old_ones(compose_train: Compose) -> None:
    _, two = made(
        compose_train,
        "{one: {epochs: 1, loss: {hint: {layers: {a: b, c: d}}}},"
        " two: {epochs: 1, loss: {hint: {layers: {e: f}}}, optim: {optimizer: {_target_: torch.optim.SGD, lr: 1}}}}",
    )
    assert OmegaConf.to_container(two.cfg.loss.hint.layers) == {"e": "f"}
    assert OmegaConf.to_container(two.cfg.optim.optimizer) == {"_target_": "torch.optim.SGD", "lr": 1}


def test_a_new_student_starts_from_the_runs_own(compose_train: Compose) -> None:
    one, two = made(compose_train, "{one: {epochs: 1, student: {net: {widths: [9]}}}, two: {epochs: 1, student: {}}}")
    assert one.fresh
    assert two.fresh
    assert (one.cfg.student.net.widths, two.cfg.student.net.widths) == ([9], [16, 32])


def test_a_student_begins_with_the_layers_of_the_runs_teacher(compose_train: Compose) -> None:
    cfg = compose_train(
        "experiment=movie_reviews",
        "teachers.main.weights=there",
        "+stages={a: {epochs: 1, teacher: none}, b: {epochs: 1, student: {}, teacher: 'stage:a'}}",
    )
    assert [stage.cfg.student.initialise.source for stage in stages_of(cfg)] == ["there", "there"]


def test_generations_begin_with_other_weights_and_other_students_with_the_runs_seed(compose_train: Compose) -> None:
    stages = made(
        compose_train,
        "{a: {epochs: 1}, b: {epochs: 1, student: {}}, c: {epochs: 1, student: {net: {widths: [9]}}},"
        " d: {epochs: 1, student: {}}}",
        "seed=5",
    )
    assert [stage.seed for stage in stages] == [5, 5 + GENERATION, 5, 5 + 2 * GENERATION]
    assert {stage.cfg.seed for stage in stages} == {5}  # of the data, and of their order


def test_teachers_by_name_by_their_settings_and_none(compose_train: Compose) -> None:
    one, two, three, four = made(
        compose_train,
        "{one: {epochs: 1, teacher: none}, two: {epochs: 1, student: {}, teacher: 'stage:one'},"
        " three: {epochs: 1, teacher: {cache: true}}, four: {epochs: 1, teacher: {weights: elsewhere, cache: true}}}",
    )
    assert teachers_of(one.cfg) == {}
    assert (two.cfg.teachers.main.weights, two.cfg.teachers.main.net) == ("stage:one", None)
    assert (three.cfg.teachers.main.weights, three.cfg.teachers.main.cache) == ("stage:one", True)
    assert (four.cfg.teachers.main.weights, four.cfg.teachers.main.cache) == ("elsewhere", True)


def test_expanded_stages_are_read_back_as_they_were(compose_train: Compose) -> None:
    cfg = composed(
        compose_train,
        "{one: {epochs: 2, train: ['layers.0.*'], until: {patience: 2}}, two: {steps: 30, student: {}}}",
    )
    stages = stages_of(cfg)
    again = stages_of(expanded(cfg, stages))
    assert [stage.plain() for stage in again] == [stage.plain() for stage in stages]
    assert [*map(type, again)] == [Stage, Stage]
    assert again[0].until == stages[0].until


def test_what_a_stage_names_as_null_is_what_the_run_has(compose_train: Compose) -> None:
    _, two = made(
        compose_train,
        "{one: {epochs: 1, task: {weight: 0}, teacher: elsewhere, data: {batch_size: 5}, loss: {kd: {temperature: 9}}},"
        " two: {epochs: 1, task: null, teacher: null, data: null, loss: {kd: null}}}",
    )
    own = compose_train(*RECIPE)
    for key in ("task", "teachers", "data"):
        assert two.cfg[key] == own[key], key
    assert two.cfg.loss.kd == own.loss.kd


@each_case(
    ("epochs", "lengths"),
    [(10, [4, 6]), (3, [1, 2]), (2, [1, 1]), (1, [1, 1]), (7, [3, 4])],  # each has one at least
)
def test_a_length_can_be_a_share_of_the_runs_epochs(epochs: int, lengths: list[int], compose_train: Compose) -> None:
    stages = made(compose_train, "{one: {epochs: 40%}, two: {epochs: 60%}}", f"trainer.max_epochs={epochs}")
    assert [stage.cfg.trainer.max_epochs for stage in stages] == lengths


def test_thirds_make_up_the_whole(compose_train: Compose) -> None:
    third = "{epochs: 33.34%}"
    cfg = composed(compose_train, f"{{a: {third}, b: {third}, c: {third}}}")
    for epochs in range(3, 40):
        cfg.trainer.max_epochs = epochs
        assert sum(stage.cfg.trainer.max_epochs for stage in stages_of(cfg)) == epochs


def test_the_method_is_called_by_the_stages(compose_train: Compose) -> None:
    cfg = composed(compose_train, "{hint: {epochs: 2}, response: {epochs: 2}}")
    assert cfg.method == method_name(cfg) == "hint-response"
    assert {stage.cfg.method for stage in stages_of(cfg)} == {"hint-response"}


def test_stages_are_part_of_what_a_job_computes(compose_train: Compose) -> None:
    plain: Any = OmegaConf.to_container(compose_train(*RECIPE), resolve=True)
    assert config_hash({**plain, "stages": {"one": {"epochs": 2}}}) != config_hash(plain)


REFUSED = [
    ("{a: {epoch: 2}}", r"Unknown setting 'stages\.a\.epoch'.*'epochs'"),
    ("{a: {}}", r"stages\.a: give its length, either as epochs or as steps"),
    ("{a: {until: {patience: 2}}}", r"stages\.a: give its length.*`until` ends it earlier"),
    ("{a: {epochs: 2, steps: 20}}", r"stages\.a: give its length"),
    ("{a: {epochs: 0}}", r"stages\.a\.epochs=0: it must be a whole number of at least 1"),
    ("{a: {steps: 1.5}}", r"stages\.a\.steps=1\.5: it must be a whole number of at least 1 or null\.$"),
    ("{a: {epochs: 4O%}}", r"stages\.a\.epochs=4O%: .* or a share of trainer\.max_epochs such as 40%"),
    ("{a: {steps: 40%}}", r"stages\.a\.steps=40%: it must be a whole number of at least 1 or null\.$"),
    ("{a: 3}", r"stages\.a=3: it must be a mapping"),
    ("{a/b: {epochs: 1}}", r"stages\.a/b: use letters.* folders are named after it"),
    ("{a: {epochs: 2, until: 3}}", r"stages\.a\.until=3: it must be a mapping \{metric"),
    ("{a: {epochs: 2, until: {patient: 3}}}", r"'stages\.a\.until\.patient'.*'patience'"),
    ("{a: {epochs: 2, until: {patience: 0}}}", r"stages\.a\.until\.patience=0"),
    ("{a: {epochs: 2, until: {mode: high}}}", r"stages\.a\.until\.mode=high\. Choose from: auto, max, min"),
    ("{a: {epochs: 2, until: {min_delta: x}}}", r"stages\.a\.until\.min_delta=x"),
    ("{a: {epochs: 2, until: {min_delta: -1}}}", r"stages\.a\.until\.min_delta=-1: .* at least 0"),
    ("{a: {epochs: 2, train: head}}", r"stages\.a\.train=head: it must be a list"),
    ("{a: {epochs: 2, train: [1]}}", r"stages\.a\.train=\[1\]: it must be a list of wildcards"),
    ("{a: {epochs: 60%}, b: {epochs: 60%}}", r"stages: their shares .*, 60% \+ 60%, add up to 120%"),
    ("{a: {epochs: 0%}}", r"stages\.a\.epochs=0%: it would not be trained"),
    ("{a: {epochs: 2, loss: [kd]}}", r"stages\.a\.loss=\[kd\]: it must be a mapping"),
    ("{a: {epochs: 2, loss: kd}}", r"stages\.a\.loss=kd: it must be a mapping"),
    ("{a: {epochs: 2, loss: {kd: 3}}}", r"stages\.a\.loss\.kd=3: it must be a mapping"),
    ("{a: {epochs: 2, data: 3}}", r"stages\.a\.data=3: it must be a mapping"),
    ("{a: {epochs: 2, teacher: [3]}}", r"stages\.a\.teacher=\[3\]: it must be a run folder"),
    ("{a: {epochs: 2, teachers: x}}", r"stages\.a\.teachers=x: it must be a mapping"),
    ("{a: {epochs: 2, teachers: {second: null}}}", r"stages\.a\.teachers\.second=null: it must be a run folder"),
    ("{a: {epochs: 2, loss: {hnt: {}}}}", r"stages\.a\.loss\.hnt: every loss.*'hint'.*Choose it there"),
    ("{a: {epochs: 2, teacher: 'stage:b'}, b: {epochs: 2}}", r"stages\.a: there is no earlier stage 'b'"),
    ("{one: {epochs: 2}, b: {epochs: 2, teacher: 'stage:onne'}}", r"no earlier stage 'onne'.*'one'"),
    ("{a: {epochs: 2, optim: {optimizer: {lrr: 1}}}}", r"Stage 'a': Unknown setting 'optim\.optimizer\.lrr'"),
    ("{a: {epochs: 2, loss: {kd: {weigth: 1}}}}", r"Stage 'a': Unknown setting 'loss\.kd\.weigth'.*'weight'"),
    ("{a: {epochs: 2, student: {net: {width: 1}}}}", r"Stage 'a': Unknown setting 'student\.net\.width'.*widths"),
]


def test_what_cannot_be_is_refused(compose_train: Compose) -> None:
    cfg = composed(compose_train, "{}", "method=m")
    for stages, told in REFUSED:
        with pytest.raises(UserError, match=told):
            check(with_value(cfg, "stages", yaml.safe_load(stages)))


@each_case(
    ("stages", "override", "told"),
    [
        ("{a: {epochs: 50%}}", "trainer.max_epochs=0", r"stages\.a\.epochs: there is no share of .*max_epochs=0"),
        ("{a: {epochs: 5, until: {}}}", "trainer.limit_val_batches=0", None),
        ("{a: {epochs: 5, until: {patience: 2}}}", "trainer.limit_val_batches=0", r"stages\.a\.until: .* is validated"),
        ("{a: {epochs: 5}}", "trainer.fast_dev_run=true", r"fast_dev_run ends .* with the first stage.*debug=limit"),
        (
            "{a: {epochs: 5}}",
            "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/score}",
            r"callbacks\.early would stop the run.*stages\.<name>\.until=.*callbacks\.early=null",
        ),
    ],
)
def test_settings_of_the_run_that_stages_cannot_have(
    stages: str, override: str, told: str | None, compose_train: Compose
) -> None:
    cfg = composed(compose_train, stages, "method=m", override)
    if told is None:
        check(cfg)
    else:
        with pytest.raises(UserError, match=told):
            check(cfg)


def test_another_teacher_is_normalised_as_the_one_before(compose_train: Compose) -> None:
    stages = "{a: {epochs: 1, teacher: there}, b: {epochs: 1, teacher: {weights: here, bn_mode: eval}}}"
    one, two = made(compose_train, stages, "teachers.main.bn_mode=train", "teachers.main.input.size=16")
    assert (one.cfg.teachers.main.bn_mode, two.cfg.teachers.main.bn_mode) == ("train", "eval")
    assert one.cfg.teachers.main.input == {}  # that of its own run


def test_what_follows_from_a_length_in_steps_waits_for_it(compose_train: Compose) -> None:
    (stage,) = made(compose_train, "{a: {steps: 30}}")
    assert stage.lasting(4).cfg.optim.scheduler.T_max == 4


def test_balanced_weights_are_for_one_stage(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"objective\.balance=auto finds one weight.*stages=none"):
        check(composed(compose_train, "{a: {epochs: 2}}", "objective.balance=auto"))


def test_what_a_stage_takes_for_better() -> None:
    """By default, of the score what the task says, and of a loss or a metric what is known of it."""
    for given, higher, expected in (
        ({}, True, [True, False]),
        ({}, False, [False, True]),
        ({"mode": "max"}, False, [True, False]),
        ({"metric": "val/loss"}, True, [False, True]),
        ({"metric": "val/loss", "mode": "max"}, True, [True, False]),
        ({"metric": "val/mse"}, True, [False, True]),
        ({"metric": "val/macro_f1"}, False, [True, False]),
        ({"metric": "other"}, False, [True, False]),
        ({"min_delta": 0.2}, False, [False, False]),
    ):
        until = Until(**given)  # type: ignore[arg-type]
        assert [until.better(value, 1.0, higher) for value in (1.1, 0.9)] == expected, given
        assert until.better(5.0, None, False)
