"""The run folder: what every file in it is called. Everything that reads or writes one takes the names from here."""

from pathlib import Path

CONFIG = "config.yaml"  # the resolved config
RECORD = "run.json"  # what is known of the run, see `record.py`
STUDENT = "student.safetensors"  # the trained student's parameters and buffers
PREDICTIONS = "predictions.npz"  # on the test split: index, target, student, and one array for each teacher's name
PROBABILITIES = "_probabilities"  # in it, after the name of student or teacher: those of its classes
LM_EVAL = "lm_eval.json"  # the scores that distill-evaluate lm_eval=… has found
EVALUATIONS = "evaluations"  # a file for each of the other data that distill-evaluate has scored the student on
CORRUPTIONS = "corruptions.json"  # the scores that distill-evaluate corruptions=… has found
CORRUPTIONS_PICTURE = "corruptions.png"  # and what becomes of a picture
LAYERS = "layers.npz"  # what distill-evaluate pictures=true has measured, see `layers.py`
SIMILARITY, ATTENTION = "similarity.png", "attention.png"  # and drawn
BALANCE = "balance.json"  # the weights that objective.balance=auto has found, by their place in the config
EXPORT = "export"  # the student in other formats, see `exports.py`
EXPORTS = "export.json"  # in it: what was measured of each
WANDB_ID = "wandb_id.txt"  # the W&B run that a resumed run continues
STAGES = "stages"  # the student of each finished stage, in a run folder of its own
CHECKPOINTS = "checkpoints"
AUTOTUNE = "autotune.json"  # in the folder of a study or sweep: what its jobs keep of settings that are `auto`
LOCK = ".lock"  # held by the process that uses the folder
# What a run that replaces another removes.
RESULTS = (
    *(CHECKPOINTS, STAGES, STUDENT, PREDICTIONS, LM_EVAL, EVALUATIONS, BALANCE, EXPORT),
    *(CORRUPTIONS, CORRUPTIONS_PICTURE, LAYERS, SIMILARITY, ATTENTION),
)
LAST, BEFORE_LAST, BEST = "last.ckpt", "last.before.ckpt", "best.ckpt"  # in `CHECKPOINTS`
SWEEPS = ("multirun.yaml", "optimization_results.yaml")  # left in a sweep's folder by Hydra and by Optuna

METRICS = "metrics/version_*/metrics.csv"  # what training logs; a resumed run adds a version

REPORT = ("report.md", "report.html", "report.csv", "report.png")  # in the folder of a report
CURVES = "curves.png"  # there, too, of runs with more than one validation
TIMELINE = "timeline.png"  # there, too, if something changes during a run
TRIALS, TRIALS_TABLE = "trials", "trials.csv"  # of a study that chooses settings: the runs that tried them, and a list
IMPORTANCE = "importance.csv"  # of a search, whose trials are in TRIALS_TABLE, too: how much each parameter matters

CALIBRATION = "calibration.png"  # of classifiers: reliability, and divergence from the teacher
ROBUSTNESS = "robustness.png"  # of students that were scored on corrupted pictures
LAYER_SIMILARITY, LAYER_MAPS = "layer_similarity.png", "layer_maps.png"  # of students with `LAYERS`
FIDELITY = "fidelity.png"  # of language models that were compared with their teacher
# Of tasks that predict classes: how well each, which are taken for which, and which gain against the baseline.
CLASSES, CONFUSION, CLASS_GAINS = "classes.csv", "confusion.png", "class_gains.png"


def report_files(out: Path) -> list[str]:
    """The names of the files of the report in a folder."""
    some = (CURVES, TIMELINE, CALIBRATION, FIDELITY, ROBUSTNESS, LAYER_SIMILARITY, LAYER_MAPS)
    of_classes = (CLASSES, CONFUSION, CLASS_GAINS)
    return [*REPORT, *(name for name in (*some, *of_classes, TRIALS_TABLE, IMPORTANCE) if (out / name).exists())]
