#!/bin/bash
# One run on several machines: sbatch docker/slurm.sh model=effnet_b3 data=siim_isic data.root=DIR
# The folders of the run and of the data must be the same on all of them.
#SBATCH --job-name=skinmm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# One task a machine: torchrun starts a process for each of its GPUs.
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
    train.py trainer=ddp trainer.accelerator=gpu "$@"
