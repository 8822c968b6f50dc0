#!/usr/bin/env bash
# Says within ten minutes whether Zaratan works: first on two GPUs, then on two nodes. From the repository's root:
#
#     sbatch scripts/check_zaratan.sh
#     sbatch --nodes=2 scripts/check_zaratan.sh
#
# scripts/check_slurm.sh, which this runs, tells what it looks at and where the report is. With --cpu after the script's
# name it looks at everything but GPUs, NCCL and bf16. Options of sbatch win over the defaults below.
#
#SBATCH --job-name=check
#SBATCH --partition=gpu-h100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:h100:2
#SBATCH --mem=64G
#SBATCH --time=00:15:00
#SBATCH --output=slurm-%j.out
set -euo pipefail

script=check_zaratan.sh SITE=zaratan
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/check_slurm.sh ]]; then
  echo "$script: submit it from the root of the repository: sbatch scripts/$script" >&2
  exit 2
fi
# shellcheck source=scripts/check_slurm.sh
source scripts/check_slurm.sh
