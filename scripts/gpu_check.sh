#!/usr/bin/env bash
# What no CPU can show, on one GPU, in a few minutes: its name, the tests that need it, and the cost of a training step.
#     bash scripts/gpu_check.sh
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "There is no GPU, or this PyTorch cannot use it."
print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda, "torch", torch.__version__)' || exit 1
"$PYTHON" -m pytest -q -o addopts='' --durations=5 tests/runs/test_on_a_gpu.py tests/models/test_cost.py
tested=$?
timeout 240 "$PYTHON" benchmarks/training.py --accelerator gpu --pairs 3 --steps 100
exit $tested
