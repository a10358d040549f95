#!/bin/bash
# ImageNet's validation set on two machines of eight GPUs: sbatch bench/slurm.sh
# The run's folder must lie on a file system that all machines see. When the job is killed or its time is over, submit it
# again with RESUME=runs/sweep: what is scored is not scored again.
#SBATCH --job-name=multicrop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
set -euo pipefail

if [[ -n "${RESUME:-}" ]]; then
    run=(--resume "$RESUME")
else
    run=(--family resnet --variants all --crops 1,2,5,10,20 --amp-dtype float16 --channels-last --yes
         --data "/data/imagenet/val-{000..049}.tar" --out runs/sweep)
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# srun does not take --cpus-per-task from sbatch by itself, since Slurm 22.05.
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    bench/run.py "${run[@]}"
