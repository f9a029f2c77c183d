"""Jobs whose processes torchrun or Slurm has started."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from distillery.core.paths import CONFIGS
from fixtures.rank_jobs import FILES, JOB, LR, MODULE, TWO, assert_same_weights, ended, files, started
from fixtures.two_ranks import Notes, note


def launched(cwd: Path, *jobs: Sequence[str]) -> list[tuple[int, str]]:
    """As torchrun does: a process a rank, each told its rank."""
    port = str(find_free_network_port())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        started(cwd, MODULE, *JOB, *TWO, *job, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank, job in enumerate(jobs)
    ]
    return [ended(process) for process in running]


@pytest.mark.long  # CI runs those of a Slurm job
def test_ranks_that_a_launcher_has_started(alone: Callable[[float], Path], teacher: str, tmp_path: Path) -> None:
    job = (teacher, f"paths.run='{tmp_path / 'run'}'", note(tmp_path / "notes"))
    ends = launched(tmp_path, job, job)
    assert [code for code, _ in ends] == [0, 0], ends
    assert sorted((each["rank"], each["world"]) for each in Notes.read(tmp_path / "notes")) == [(0, 2), (1, 2)]
    assert files(tmp_path / "run") == FILES
    assert_same_weights(tmp_path / "run", alone(LR))


@pytest.mark.slow
def test_a_launcher_s_ranks_with_different_configs_are_refused(teacher: str, tmp_path: Path) -> None:
    job = (teacher, f"paths.run='{tmp_path / 'run'}'")
    ends = launched(tmp_path, job, (*job, "optim.optimizer.lr=0.02"))
    assert [code != 0 for code, _ in ends] == [True, True]
    assert "Rank 1 was started with another config than rank 0." in ends[1][1]


SRUN = """#!/usr/bin/env bash
for rank in 0 1; do SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_LOCALID=0 "$@" & done
wait %1 && wait %2
"""


@pytest.mark.slow
def test_two_nodes_of_a_slurm_job(alone: Callable[[float], Path], teacher: str, tmp_path: Path) -> None:
    """The script is run with an `srun` that starts its tasks here, as those of two nodes with a device each."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NAME": "distillery", "JOB_NUM_NODES": "2", "NTASKS": "2", "NTASKS_PER_NODE": "1"}
    variables = {f"SLURM_{name}": value for name, value in {**slurm, "NODELIST": "127.0.0.1"}.items()}
    variables |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}
    job = (*JOB, "trainer.accelerator=cpu", teacher, note(tmp_path / "notes"))
    script = ("bash", str(CONFIGS.parent / "scripts" / "slurm.sh"))
    code, said = ended(started(tmp_path, script, *job, MASTER_PORT=str(find_free_network_port()), **variables))
    assert code == 0, said
    assert sorted((each["rank"], each["world"]) for each in Notes.read(tmp_path / "notes")) == [(0, 2), (1, 2)]
    assert_same_weights(tmp_path / "outputs" / "slurm" / "7", alone(LR))
