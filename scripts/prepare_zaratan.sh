#!/usr/bin/env bash
# Prepares data as a Slurm job on Zaratan, not on a login node. From the repository's root:
#
#     sbatch scripts/prepare_zaratan.sh configs/config.yaml --data.source '/path/to/bookcorpus/*.parquet'
#
# A large corpus on several nodes: a job array that tokenizes, and a job that puts together what it made.
#
#     job=$(sbatch --parsable --array=1-8 scripts/prepare_zaratan.sh configs/config.yaml [the same settings])
#     sbatch --dependency=afterok:$job scripts/prepare_zaratan.sh configs/config.yaml [the same settings] --assemble
#
# scripts/prepare_slurm.sh, which this runs, tells more. Options of sbatch win over the defaults below.
#
#SBATCH --job-name=prepare
#SBATCH --partition=standard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%j.out
set -euo pipefail

script=prepare_zaratan.sh SITE=zaratan
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/prepare_slurm.sh ]]; then
  echo "$script: submit it from the root of the repository: sbatch scripts/$script configs/config.yaml" >&2
  exit 2
fi
# shellcheck source=scripts/prepare_slurm.sh
source scripts/prepare_slurm.sh
