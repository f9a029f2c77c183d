#!/usr/bin/env bash
# A run on the GPUs of several nodes: sbatch --nodes=2 scripts/slurm.sh experiment=… <other overrides of distill-train>
# A job that is requeued keeps its number, and so its run folder: the run is resumed from its last checkpoint.
#SBATCH --job-name=distillery
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.txt
set -euo pipefail

srun "${PYTHON:-.venv/bin/python}" -m distillery.commands.train \
    hardware=ddp trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \
    hydra.run.dir="outputs/slurm/$SLURM_JOB_ID" "$@"
