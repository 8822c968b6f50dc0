#!/usr/bin/env bash
# Prepares data as a Slurm job, not on a login node. From the repository's root:
#
#     sbatch scripts/prepare_zaratan.sh configs/config.yaml --data.source '/path/to/bookcorpus/*.parquet'
#
# A large corpus on several nodes: a job array that tokenizes, and a job that puts together what it made.
#
#     job=$(sbatch --parsable --array=1-8 scripts/prepare_zaratan.sh configs/config.yaml [the same settings])
#     sbatch --dependency=afterok:$job scripts/prepare_zaratan.sh configs/config.yaml [the same settings] --assemble
#
# With data.tokenizer bpe submit both twice: the first --assemble trains the tokenizer.
#
# What stands after the config goes to `horovod-transformer prepare`. A compute node has no internet: the books must
# be files there. Options of sbatch win over the defaults below; HT_MODULES and HT_VENV are explained in
# scripts/slurm_job.sh.
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

script=prepare_zaratan.sh
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/slurm_job.sh ]]; then
  echo "$script: submit it from the root of the repository: sbatch scripts/$script configs/config.yaml" >&2
  exit 2
fi
# shellcheck source=scripts/slurm_job.sh
source scripts/slurm_job.sh

config=configs/config.yaml
if [[ $# -gt 0 && $1 != -* ]]; then
  config=$1
  shift
fi
share=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  first=${SLURM_ARRAY_TASK_MIN:?} last=${SLURM_ARRAY_TASK_MAX:?} count=${SLURM_ARRAY_TASK_COUNT:?}
  ((last - first + 1 == count)) ||
    fail "this array has gaps: submit all of it again, what is finished is passed over in seconds"
  share=(--units "$((SLURM_ARRAY_TASK_ID - first + 1))/$count")
fi
exec python -m horovod_transformer prepare --config "$config" "$@" "${share[@]}"
