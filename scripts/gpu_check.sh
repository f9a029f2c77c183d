#!/usr/bin/env bash
# What no CPU can show, on one GPU, in nine minutes at most: its name, the tests that need it, the cost of a training step.
#     bash scripts/gpu_check.sh
# The Python is that of .venv, or $PYTHON, or python3; its PyTorch must fit the GPU. What else is missing is named. Without a
# network bring it as wheels, a folder of them: WHEELS=wheels bash scripts/gpu_check.sh
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python}
PYTHON=${PYTHON:-python3}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/src
unset DISTILLERY_OUTPUTS

if [ -n "${WHEELS:-}" ]; then
  packages=$(mktemp -d)
  trap 'rm -rf "$packages"' EXIT
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$packages" "$WHEELS"/*.whl || exit 1
  PYTHONPATH=$PYTHONPATH:$packages
fi

"$PYTHON" - << 'END' || exit 1
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable} has no PyTorch ({error}). Name another one: PYTHON=… bash scripts/gpu_check.sh")
print(f"Python {sys.version.split()[0]}, torch {torch.__version__} for CUDA {torch.version.cuda}")
if not torch.cuda.is_available():
    sys.exit("There is no GPU, or this PyTorch cannot use it.")
print(torch.cuda.get_device_name(), "×", torch.cuda.device_count(), "compute capability", torch.cuda.get_device_capability())

import tomllib

from packaging.requirements import Requirement

with open("pyproject.toml", "rb") as file:
    wanted = [*tomllib.load(file)["project"]["dependencies"], "pytest"]
for each in map(Requirement, wanted):
    try:
        found = version(each.name)
    except PackageNotFoundError:
        print(f"not installed: {each}")
        continue
    if not each.specifier.contains(found, prereleases=True):
        print(f"another version: {each.name} {found}; pyproject.toml asks for {each.specifier}")
try:
    import pytest
    import timm

    import distillery.commands.train
    import distillery.runs.run
except Exception as error:  # packages that do not fit each other have errors of their own
    sys.exit(f"{type(error).__name__}: {error}. Install what is missing, or bring it as wheels: WHEELS=… bash scripts/gpu_check.sh")
END
command -v "${CC:-gcc}" > /dev/null || command -v cc > /dev/null || echo "There is no C compiler: torch.compile will fail."

# Compiling takes most of the time: in several processes, if pytest-xdist is there. An interrupted run shows what it has.
several=()
"$PYTHON" -c 'import xdist' 2> /dev/null && several=(-n 4) && export TORCHINDUCTOR_COMPILE_THREADS=4
timeout --signal=INT --kill-after=15 280 "$PYTHON" -m pytest -v -o addopts='' -p no:cacheprovider --tb=short --durations=8 \
  "${several[@]}" tests/runs/test_on_a_gpu.py tests/models/test_cost.py::test_on_a_gpu_the_clock_waits_for_the_device
tested=$?
unset TORCHINDUCTOR_COMPILE_THREADS
timeout --signal=INT --kill-after=15 200 "$PYTHON" benchmarks/training.py --accelerator gpu --resnets --pairs 2 --steps 100
measured=$?
[ $tested -eq 0 ] && echo "All tests have passed." || echo "Tests have failed, or not all were run (pytest ended with $tested)."
[ $measured -eq 0 ] || echo "The benchmark ended with $measured: see above."
exit $tested
