#!/usr/bin/env bash
# Trains on one or more nodes of Zaratan, one process per GPU. From the repository's root:
#
#     sbatch scripts/train_zaratan.sh configs/config.yaml [more arguments for python -m src.train]
#     sbatch --nodes=2 scripts/train_zaratan.sh configs/config.yaml
#
# The defaults below fit Zaratan (University of Maryland): one node with four H100s. Nothing here needs editing:
# options of sbatch win over them, and so do its variables (SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT):
#
#     sbatch --account=my-account --time=02:00:00 scripts/train_zaratan.sh configs/config.yaml
#     sbatch --partition=gpu --gres=gpu:a100:2 scripts/train_zaratan.sh configs/config.yaml --output_dir /scratch/b
#
# scripts/train_slurm.sh, which this runs, does the work on any cluster (docs/slurm.md). Five minutes before the time
# limit the run saves a checkpoint and the job queues itself again, to resume where it stopped: docs/zaratan.md.
#
#SBATCH --job-name=train
#SBATCH --partition=gpu-h100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:h100:4
#SBATCH --mem=256G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
set -euo pipefail

script=train_zaratan.sh SITE=zaratan
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/train_slurm.sh ]]; then
  echo "$script: submit it from the root of the repository: sbatch scripts/$script configs/config.yaml" >&2
  exit 2
fi
# shellcheck source=scripts/train_slurm.sh
source scripts/train_slurm.sh
