#!/usr/bin/env bash
# Says within ten minutes whether this cluster works: ranks, NCCL, all-reduce rate, bf16, the same curve on one rank
# and on all, kill and resume. From the repository's root, first on two GPUs, then on two nodes:
#
#     SITE=mycluster scripts/submit.sh check
#     SITE=mycluster scripts/submit.sh --nodes=2 check
#
# The last line of slurm-JOB.out is the verdict, check-JOB/report.md the report to send back. With --cpu after `check` it
# looks at everything but GPUs, NCCL and bf16, and says so. scripts/check_zaratan.sh, which has Zaratan's partition in
# its #SBATCH lines, runs this file. HT_MODULES and HT_VENV are explained in scripts/slurm_job.sh.
#
#SBATCH --job-name=check
#SBATCH --nodes=1
#SBATCH --output=slurm-%j.out
set -euo pipefail

script=${script:-check_slurm.sh} # or that of a script which sources this one
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/slurm_job.sh ]]; then
  echo "$script: submit it from the root of the repository: scripts/submit.sh check" >&2
  exit 2
fi
# shellcheck source=scripts/slurm_job.sh
source scripts/slurm_job.sh
[[ $# -eq 0 || $* == --cpu ]] || fail "$*: the only argument is --cpu"

folder=check-$SLURM_JOB_ID
mkdir "$folder"
export CHECK_RANKS=$((nodes * ranks_per_node))
[[ ${1:-} != --cpu ]] || export CUDA_VISIBLE_DEVICES=

# A part that fails is seen in the report: continue with the next one.
part() {
  local name=$1 code=0
  shift
  echo "$(date +%T) $name"
  "$@" >"$folder/$name.log" 2>&1 || code=$?
  [[ $code -eq 0 ]] || echo "$(date +%T) $name ended with exit code $code" | tee -a "$folder/$name.log"
}

on_one() (start_ranks 1 1 "$cores" "$@")
on_all() (start_ranks "$nodes" "$ranks_per_node" "$cores" "$@")

doomed() {
  local code=0
  on_all scripts/check_cluster.py doomed "$folder" "${run[@]}" --output_dir "$folder/killed" || code=$?
  echo "$(date +%s.%N) $code" >"$folder/killed_end"
}

run=(--config "$folder/config.yaml" --run_name check)
python scripts/check_cluster.py config "$folder" "$@"
part ranks on_all scripts/check_cluster.py ranks "$folder" "$@"
if [[ -f $folder/ranks.json ]]; then # else they did not meet, and all that follows would only fail more slowly
  part prepare python -m horovod_transformer prepare --config "$folder/config.yaml"
  part one on_one -m src.train "${run[@]}" --output_dir "$folder/one"
  part all on_all -m src.train "${run[@]}" --output_dir "$folder/all"
  [[ $# -gt 0 ]] || part bf16 on_all -m src.train "${run[@]}" --output_dir "$folder/bf16" --training.precision bf16
  part killed doomed
  part resumed on_all -m src.train "${run[@]}" --output_dir "$folder/killed" --resume auto
fi
python scripts/check_cluster.py report "$folder" "$@"
