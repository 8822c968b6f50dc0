#!/usr/bin/env bash
# Prepares data as a Slurm job, not on a login node. From the repository's root:
#
#     SITE=mycluster scripts/submit.sh prepare configs/config.yaml --data.source '/path/to/bookcorpus/*.parquet'
#
# A large corpus on several nodes: a job array that tokenizes, and a job that puts together what it made.
#
#     job=$(scripts/submit.sh --parsable --array=1-8 prepare configs/config.yaml [the same settings])
#     scripts/submit.sh --dependency=afterok:$job prepare configs/config.yaml [the same settings] --assemble
#
# With data.tokenizer bpe submit both twice: the first --assemble trains the tokenizer.
#
# What stands after the config goes to `horovod-transformer prepare`. A compute node has no internet: the books must
# be files there. scripts/prepare_zaratan.sh, which has Zaratan's partition in its #SBATCH lines, runs this file.
# HT_MODULES and HT_VENV are explained in scripts/slurm_job.sh.
#
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --output=slurm-%j.out
set -euo pipefail

script=${script:-prepare_slurm.sh} # or that of a script which sources this one
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/slurm_job.sh ]]; then
  echo "$script: submit it from the root of the repository: scripts/submit.sh prepare configs/config.yaml" >&2
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
