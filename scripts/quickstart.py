# %% [markdown]
# # Distil a teacher into a small student
#
# `make demo` step by step, from Python. A teacher learns scikit-learn's digits from 800 images; a student with an
# eleventh of its parameters sees 100 of them, with and without the teacher. This takes about a minute on a CPU.

# %%
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir
from IPython.display import Image, display
from safetensors.torch import load_file

from distillery.config.build import build
from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.core.terminal import hushed
from distillery.models.cnn import SmallCNN
from distillery.results.report.write import write_report
from distillery.runs.plan import show_plan
from distillery.runs.run import train

out = Path(tempfile.mkdtemp())
register_resolvers()
initialize_config_dir(str(CONFIGS), **HYDRA_VERSION)


def config(run: str, *overrides: str):
    """The config of `distill-train <overrides>`, with its run folder in `out`."""
    return compose("train", overrides=[*overrides, f"paths.run={out / run}", "trainer.enable_progress_bar=false"])


# %% [markdown]
# ## The teacher
#
# A run is described by a config. This one has no teacher: it trains a network on the labels. `hushed` leaves out what a
# run tells of its parts.

# %%
with hushed():
    teacher = train(config("teacher", "experiment=digits_teacher"))
teacher.record.metrics["last"]

# %% [markdown]
# ## The wiring of a student
#
# `experiment=digits_demo` distils with soft targets; `loss/feature=[hint]` adds FitNets' hint. Layers are paired
# automatically, and a projector is built between them. On the command line, `plan=true` prints the same.

# %%
weights = f"teachers.main.weights={out / 'teacher'}"
checked = check(config("plan", "experiment=digits_demo", "loss/feature=[hint]", weights))
show_plan(build(checked.stages[0]))

# %% [markdown]
# ## With and without the teacher
#
# Three seeds each. A seed fixes the initial weights, the 100 images, their order and their augmentation, so methods can
# be compared in pairs.

# %%
methods = {"baseline": ["model/teacher=none", "task.weight=1.0"], "kd": [weights]}
for seed in range(3):
    for method, overrides in methods.items():
        with hushed():
            run = train(config(f"{method}{seed}", "experiment=digits_demo", f"seed={seed}", *overrides))
        print(method, seed, round(run.record.metrics["last"]["test_score"], 4))

# %% [markdown]
# ## The report

# %%
report = write_report([out], out, "Digits, three seeds")
display(Image(out / "report.png"), report.table)

# %% [markdown]
# Three seeds leave wide intervals; `make demo` runs eight, and more methods. The student's weights are a plain file
# that loads without Lightning or Hydra.

# %%
student = SmallCNN(num_classes=10, in_chans=1, widths=(16, 32))
student.load_state_dict(load_file(out / "kd0" / "student.safetensors"))
