"""Studies: a tiny one is run, cut short, changed and gone on with; those in configs/ fit together."""

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.config.names import losses_of, method_name, teachers_of
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.core.roles import FROZEN, role_of
from distillery.losses.response.kd import KD
from distillery.models.weights import weights_hash
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs.job import Job
from distillery.runs.study import run_study
from distillery.runs.study_bar import StudyBar
from distillery.runs.study_jobs import StudyJobs, methods_of
from distillery.runs.study_trials import Trials
from fixtures.building import build

SLOW = ("tuned_fashion_mnist", "text_recipes", "bfloat16")  # many jobs
LONG = ("leaderboard", "tuned_", "wordnet_", "movie_reviews_", "stages_movie")  # many, like those of another
STUDIES = [
    pytest.param(
        path.stem,
        marks=pytest.mark.slow if path.stem in SLOW else pytest.mark.long if path.stem.startswith(LONG) else [],
    )
    for path in sorted((CONFIGS / "study").glob("*.yaml"))
]
FORMS = ("truncate", "renormalise", "renormalise_teacher", "tail", "sample")  # of topk_kd
CONTROLS = {  # named by what they are, not by their losses
    "label_smoothing": [],
    "ema": ["kd"],
    "mutual": ["kd"],
    "tinybert": ["kd", "hidden_mse", "tinybert_attention", "embedding_mse"],
    "distilbert": ["kd", "hidden_cosine"],
    "distilbert_classification": ["kd", "hidden_cosine"],
    "bert_to_bilstm": ["logit_mse"],
    "teacher_assistant": ["kd"],
    "fitnets": ["kd", "hint"],
    "born_again": ["kd"],
    "layerwise": ["kd", "hint"],
    "kd_labelled": ["kd"],
    **{key: ["reverse_kl"] for key in ("lambda_0", "lambda_0.25", "lambda_0.5", "lambda_1")},
    "logit_mse_labelled": ["logit_mse"],
    "kd_half": ["kd"],
    **{key: [] for key in ("float", "float_longer", "rounded_8da4w", "rounded_int2")},
    "qad": ["kd"],
    **{key: [] for key in ("baseline_equal_time", "baseline_equal_time_sampled", "baseline_long")},
    **{key: [] for key in ("model_labels", "true_labels", "model_texts", "more_texts")},
    **{key: ["kd"] for key in ("kd_long", "patient", "patient_short")},
    **{f"topk_kd_{form}": ["topk_kd"] for form in ("tail", "sample")},
    **{f"kd_{precision}": ["kd"] for precision in ("float32", "bfloat16_teacher", "bfloat16")},
    **{f"{form}_{k}": ["topk_kd"] for form in FORMS for k in (4, 8, 16)},
}
ON_TEXTS = {"layerwise": ["kd", "hidden_mse"]}
STARTED = "quantized_vit"  # with a run of the study, which also teaches
OTHER_STUDENTS = ("simkd", "deit_soft", "deit_hard", "minilm", "minilmv2", "tinybert", "bert_to_bilstm")
REQUIRED = {
    "own_images": ["data.root='my pictures'", "methods=[kd,kd+at,hint]"],
    "own_texts": ["path='my texts.jsonl'", "teacher_net=bert", "methods=[kd,kd+rkd]"],
}
SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))
REPORT = ["report.csv", "report.html", "report.md", "report.png"]
TINY = ("trainer.max_epochs=2", "min_teacher_score=0")
BASELINE = ["model/teacher=none", "task.weight=1.0"]
DEMO = ["experiment=digits_demo", "teachers.main.weights=teacher", "paths.run=run"]
IMPOSSIBLE = ["loss/feature=[hint]", "loss.hint.layers={no_such_layer: no_such_layer}"]
Study = Callable[..., DictConfig]


@pytest.fixture(scope="module", autouse=True)
def configs() -> Iterator[None]:
    """As within a command: `compose` finds the project's configs."""
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        yield


def study(out: Path, seeds: str = "[0]", overrides: tuple[str, ...] = TINY, **methods: list[str]) -> DictConfig:
    """`distill-study study=digits_demo` with few epochs; `methods` replace its own."""
    given = [f"out='{out}'", f"seeds={seeds}", f"overrides={json.dumps(overrides)}"]
    cfg = compose("study", overrides=["study=digits_demo", *given])
    if methods:
        cfg.methods = methods
    return cfg


def records(out: Path) -> dict[str, bytes]:
    """Every run.json below `out` by its run's folder."""
    return {path.parent.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob(RECORD))}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {run for run in after if after[run] != before.get(run)}


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What the terminal showed, without its line breaks."""
    return re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """A baseline and KD, two seeds, run to the end."""
    cfg = study(tmp_path_factory.mktemp("study") / "out", "[0,1]", baseline=BASELINE, kd=[])
    run_study(cfg)
    return cfg


def test_report_has_a_row_for_teacher_and_methods(finished: DictConfig) -> None:
    out = Path(finished.out)
    assert sorted(path.name for path in out.glob("report.*")) == REPORT
    assert list(pd.read_csv(out / "report.csv")["method"]) == ["teacher", "baseline", "kd"]
    page = (out / "report.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" *") for line in page.splitlines() if line.startswith("|")]
    assert rows[:5] == ["method", "---", "teacher", "baseline", "kd"]
    assert rows[5:8] == ["method", "---", "kd"], "against the baseline"
    assert rows[8:] == ["class", "---", *map(str, range(10)), *rows[:5]], "classes; fidelity and calibration"
    assert page.startswith(f"# {finished.title}\n")
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_students_learn_from_the_teacher_of_the_study(finished: DictConfig) -> None:
    out = Path(finished.out)
    teacher = RunRecord.read(out / "teacher")
    for seed in (0, 1):
        used = RunRecord.read(out / "kd" / f"seed{seed}").teachers
        assert used["main"]["sha256"] == teacher.student_sha256
        assert used["main"]["score"] == teacher.metrics["last"]["test_score"]
        assert not RunRecord.read(out / "baseline" / f"seed{seed}").teachers


def test_a_second_call_trains_nothing(finished: DictConfig, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(finished.out)
    before = records(out)
    assert len(before) == 5
    (out / "report.csv").unlink()
    run_study(finished)
    assert records(out) == before
    assert (out / "report.csv").is_file()
    shown = printed(capsys)
    for job in ("teacher", "baseline seed 0", "kd seed 0", "baseline seed 1", "kd seed 1"):
        assert f"{job}: kept" in shown
    assert "validation score" not in shown


def test_methods_of_a_seed_start_alike_on_the_same_images(finished: DictConfig) -> None:
    starts: dict[int, set[tuple[str, str | None]]] = {0: set(), 1: set()}
    for student in StudyJobs(finished).students():
        job = student.job
        record = RunRecord.read(job.folder)
        assert record.status == "finished"
        initial = weights_hash(build(job.cfg.copy()).distiller.student.net)
        assert initial != record.student_sha256
        starts[record.seed].add((initial, record.data["fingerprint"]))
    assert [len(of_seed) for of_seed in starts.values()] == [1, 1]
    (weights_0, images_0), (weights_1, images_1) = starts[0].pop(), starts[1].pop()
    assert weights_0 != weights_1
    assert images_0 != images_1


@pytest.mark.slow
def test_every_method_of_the_demo(tmp_path: Path) -> None:
    cfg = study(tmp_path / "out", "[0,1]")
    run_study(cfg)
    table = pd.read_csv(tmp_path / "out" / "report.csv")
    assert list(table["method"]) == ["teacher", "baseline", "kd", "kd+hint", "kd+at", "rkd"]
    assert set(table["n_seeds"][1:]) == {2}


@pytest.mark.slow
def test_the_others_go_on_when_a_method_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    methods = {"hint": IMPOSSIBLE, "baseline": BASELINE, "kd": []}
    run_study(study(out, **methods))
    assert re.search(r"hint seed 0 failed: .*no layer 'no_such_layer'", printed(capsys))
    assert list(pd.read_csv(out / "report.csv")["method"]) == ["teacher", "baseline", "kd"]
    assert_shown_as_failed(out, "hint", "no_such_layer")

    before = records(out)
    run_study(study(out, **methods))
    assert changed(before, records(out)) == {"hint/seed0"}, "only what failed is tried again"
    run_study(study(out, **{**methods, "hint": ["loss/feature=[hint]"]}))
    assert RunRecord.read(out / "hint" / "seed0").status == "finished"
    assert "failed" not in (out / "report.md").read_text(encoding="utf-8")


def test_a_method_that_breaks_off_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run_study(study(out, kd=["optim.optimizer.lr=1e30"], baseline=BASELINE))
    assert "kd seed 0 failed" in printed(capsys)
    assert list(pd.read_csv(out / "report.csv")["method"]) == ["baseline"]
    assert_shown_as_failed(out, "kd", "not finite|is nan|is inf")
    assert RunRecord.read(out / "kd" / "seed0").environment, "`train` kept this record"


@pytest.mark.slow
def test_a_failure_replaces_the_record_of_the_run_before(tmp_path: Path) -> None:
    """Else the report would show figures of another config as this one's."""
    out = tmp_path / "out"
    run_study(study(out, hint=["loss/feature=[hint]"], baseline=BASELINE))
    cfg = study(out, hint=IMPOSSIBLE, baseline=BASELINE)
    cfg.replace = True
    run_study(cfg)
    assert "hint" not in set(pd.read_csv(out / "report.csv")["method"])
    assert_shown_as_failed(out, "hint", "no_such_layer")


def test_the_others_go_on_after_an_error_that_is_not_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise RuntimeError("out of memory")

    out = tmp_path / "out"
    monkeypatch.setattr(KD, "forward", exhausted)
    run_study(study(out, kd=[], baseline=BASELINE))
    shown = printed(capsys)
    assert "kd seed 0 failed: Traceback" in shown
    assert "RuntimeError: out of memory" in shown
    assert RunRecord.read(out / "baseline" / "seed0").status == "finished"
    assert_shown_as_failed(out, "kd", "RuntimeError: out of memory")


def assert_shown_as_failed(out: Path, method: str, reason: str) -> None:
    record = RunRecord.read(out / method / "seed0")
    assert (record.method, record.seed, record.status) == (method, 0, "failed")
    assert record.error
    assert re.search(reason, record.error)
    page = (out / "report.md").read_text(encoding="utf-8")
    assert re.search(rf"\({method}, seed 0\): failed: .*({reason})", page)


@pytest.mark.parametrize(("seeds", "wrong"), [("[0,1]", ["loss.kd.temperature=-1"]), ("[0,1,-1]", [])])
def test_every_method_and_every_seed_is_checked_before_a_run(seeds: str, wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="-1"):
        run_study(study(tmp_path / "out", seeds, baseline=BASELINE, kd=wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_config_replaces_a_run_only_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(study(out, baseline=BASELINE, kd=[]))
    before = records(out)
    hotter = study(out, baseline=BASELINE, kd=["loss.kd.temperature=2"])
    with pytest.raises(UserError, match=rf"{out}/kd/seed0 holds .* another job .*replace=true"):
        run_study(hotter)
    assert records(out) == before
    hotter.replace = True
    run_study(hotter)
    assert changed(before, records(out)) == {"kd/seed0"}
    assert OmegaConf.load(out / "kd" / "seed0" / "config.yaml").loss.kd.temperature == 2


@pytest.mark.slow
def test_a_new_teacher_is_learnt_from_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(study(out, baseline=BASELINE, kd=[]))
    old, baseline = (RunRecord.read(out / run) for run in ("teacher", "baseline/seed0"))
    cfg = study(out, baseline=BASELINE, kd=[])
    cfg.teacher = [*cfg.teacher, "seed=1"]
    with pytest.raises(UserError, match=rf"{out}/teacher holds .*replace=true"):
        run_study(cfg)
    cfg.replace = True
    run_study(cfg)
    new, kept = (RunRecord.read(out / run) for run in ("teacher", "baseline/seed0"))
    assert new.student_sha256 != old.student_sha256
    assert RunRecord.read(out / "kd" / "seed0").teachers["main"]["sha256"] == new.student_sha256
    assert (kept.started, kept.student_sha256) == (baseline.started, baseline.student_sha256)  # it has no teacher
    assert kept.fidelity != baseline.fidelity  # but is compared with the new one


def test_a_study_shares_anothers_teacher(finished: DictConfig, tmp_path: Path) -> None:
    """And a method may have a second one; finished, it is kept as any other."""
    before = records(Path(finished.out))
    settings = f"net: null, weights: '{finished.out}/kd/seed0', input: {{}}, bn_mode: eval, cache: false"
    second = f"+teachers.second={{{settings}}}"
    two = [second, "loss.kd.teacher=[main,second]", "+loss.kd.combine=mean", "trainer.max_epochs=1"]
    cfg = study(tmp_path / "out", baseline=BASELINE, kd=[], two=two)
    cfg.teacher_folder = f"{finished.out}/teacher"
    run_study(cfg)
    assert records(Path(finished.out)) == before, "nothing of it is run again"
    own = records(tmp_path / "out")
    assert own.keys() == {"baseline/seed0", "kd/seed0", "two/seed0"}
    assert len({each["sha256"] for each in RunRecord.read(tmp_path / "out" / "two/seed0").teachers.values()}) == 2
    run_study(cfg)
    assert records(tmp_path / "out") == own
    used, taught = (RunRecord.read(tmp_path / "out" / "kd/seed0"), RunRecord.read(Path(finished.out) / "teacher"))
    assert used.teachers["main"]["sha256"] == taught.student_sha256
    assert {"teacher", "baseline", "two"} <= set(pd.read_csv(tmp_path / "out" / "report.csv").method)


@pytest.mark.usefixtures("smollm2_package")
@pytest.mark.parametrize("name", STUDIES)
def test_study_file_fits_together(name: str, tmp_path: Path) -> None:
    """Every job composes and checks, a method is called as its losses are, and all methods share one student."""
    cfg = compose("study", overrides=[f"study={name}", f"out='{tmp_path}'", *REQUIRED.get(name, [])])
    assert len(set(cfg.seeds)) == len(cfg.seeds) > 1
    cfg.seeds = cfg.seeds[: 2 if name == "digits_demo" else 1]  # seeds are numbers that all studies treat alike
    jobs = StudyJobs(cfg)
    teacher, students = jobs.teacher, [each.job for each in jobs.students(Trials(cfg, jobs).first)]
    trained = [] if teacher is None else [teacher]  # else the students have one that is trained already
    assert [method_name(job.cfg) for job in trained] == ["baseline"] * len(trained)
    methods = [*methods_of(cfg)]
    assert [job.cfg.method for job in students] == methods * len(cfg.seeds)
    assert [job.cfg.seed for job in students] == [seed for seed in cfg.seeds for _ in methods]
    assert len({job.folder for job in (*trained, *students)}) == len(trained) + len(students)
    for job in (*trained, *students):
        assert job.cfg.paths.run == str(job.folder)
    for job in students:
        losses = [*losses_of(job.cfg)]
        assert job.cfg.method in (method_name(job.cfg), *losses) or losses in (
            CONTROLS[job.cfg.method],
            ON_TEXTS.get(job.cfg.method),
        )
        assert job.cfg.student == students[0].cfg.student or job.cfg.method in OTHER_STUDENTS or name == STARTED
        assert _source(job) == _source((*trained, *students)[0])
        taught = [own for own in teachers_of(job.cfg).values() if role_of(own) == FROZEN]
        start = str(tmp_path / "float" / f"seed{job.cfg.seed}")
        if name == STARTED:
            assert job.cfg.student.weights == (None if job.cfg.method == "float" else start)
        expected = str(teacher.folder) if teacher else start if name == STARTED else "pretrained"
        assert all(own.weights == expected for own in taught)
        assert taught or job.cfg.method in ("baseline", "deep_supervision", *CONTROLS)


def _source(job: Job) -> dict[str, Any]:
    """Where its data are from, but for the file: what differs between methods may be who wrote the labels in it."""
    return {key: value for key, value in job.cfg.data.source.items() if key != "path"}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_file_composes(name: str) -> None:
    if name in ("optuna", "edge"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    cfg = compose("train", overrides=[f"sweep={name}", *DEMO], return_hydra_config=True)
    assert cfg.hydra.sweeper.params == OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml").hydra.sweeper.params


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_is_over_settings_that_exist(name: str) -> None:
    sweeper = OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml").hydra.sweeper
    params = [f"{key}={value}" for key, value in sweeper.params.items()]
    assert params
    cfg = compose("train", overrides=DEMO)
    for override in OverridesParser.create().parse_overrides(params):
        assert override.is_sweep_override()
        assert OmegaConf.select(cfg, override.key_or_group) is not None
        if override.is_discrete_sweep():
            first = next(override.sweep_string_iterator())
            check(compose("train", overrides=[*DEMO, f"{override.key_or_group}={first}"]))


def test_a_method_with_a_teacher_of_its_own_is_not_given_the_studys(tmp_path: Path) -> None:
    methods = {role: [f"model/teacher={role}"] for role in ("ema", "peer", "self", "none", "run")}
    students = [each.job for each in StudyJobs(study(tmp_path, **methods)).students()]
    given = {job.folder.parent.name: [each for each in job.overrides if "main.weights" in each] for job in students}
    studys = [f"++teachers.main.weights={tmp_path / 'teacher'}"]  # a baseline may begin with the teacher's layers
    assert given == {role: [] for role in methods} | {"none": studys, "run": studys}


def test_a_warning_says_which_run_it_is_about_and_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    shown = warnings.showwarning
    with StudyBar(Console(), runs=1) as bar:
        bar.follow("kd seed 3")
        warnings.warn("loss.kd is not heard", stacklevel=1)
    assert capsys.readouterr().out == "kd seed 3: loss.kd is not heard\n"
    assert warnings.showwarning is shown
