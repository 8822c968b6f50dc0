#!/usr/bin/env bash
# Submits a job on any Slurm cluster. From the repository's root:
#
#     export SITE=zaratan      # sites/zaratan.sh; or the path of a file of your own (docs/slurm.md)
#     scripts/submit.sh train configs/config.yaml [more arguments for python -m src.train]
#     scripts/submit.sh prepare configs/config.yaml --data.source '/path/to/books/*.parquet'
#     scripts/submit.sh check
#     scripts/submit.sh sweep.sh      # a job script of yours, which gets what training gets
#
# sbatch's own options stand before that word, as in `scripts/submit.sh --nodes=2 train configs/config.yaml`. They win over
# what the site's file says, and so do sbatch's variables (SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT, ...).
set -euo pipefail

script=submit.sh
[[ -f scripts/site.sh ]] || {
  echo "$script: run it from the root of the repository: scripts/$script train configs/config.yaml" >&2
  exit 2
}
# shellcheck source=scripts/site.sh
source scripts/site.sh
usage="scripts/submit.sh [options of sbatch] train|prepare|check|SCRIPT.sh [arguments]"

users=() what=
while [[ $# -gt 0 && -z $what ]]; do
  case $1 in
    train | prepare | check | *.sh) what=$1 ;;
    *) users+=("$1") ;;
  esac
  shift
done
[[ -n $what ]] || fail "what is to be submitted? $usage
$site_name: partitions ${gpu_partition:-(default)} and ${cpu_partition:-(default)}, $gpus_per_node GPUs a node, $train_time" \
  "${about_storage:+
$about_storage}"
[[ $what != *.sh || -f $what ]] || fail "there is no file $what; $usage"

command -v sbatch >/dev/null || fail "there is no sbatch here; call this on a login node of $site_name"

# option NAME VALUE VARIABLE: what the site says, unless it says nothing or the user's variable does.
options=()
option() {
  [[ -z $2 || -n ${!3:-} ]] || options+=("--$1=$2")
}

gpus=$gpus_per_node memory_gb=$((memory_per_gpu_gb * gpus_per_node)) time=$train_time job=scripts/train_slurm.sh
case $what in
  check) # a small model, on two GPUs: one's share of the memory is enough
    gpus=$((gpus_per_node < 2 ? gpus_per_node : 2)) memory_gb=$memory_per_gpu_gb
    time=00:15:00 job=scripts/check_slurm.sh
    ;;
  prepare) time=04:00:00 job=scripts/prepare_slurm.sh ;;
  *.sh) job=$what ;;
esac
if [[ $what == prepare ]]; then
  option partition "$cpu_partition" SBATCH_PARTITION
else
  options+=("--ntasks-per-node=$gpus" "--cpus-per-task=$cores_per_gpu")
  option partition "$gpu_partition" SBATCH_PARTITION
  option gres "gpu:${gpu_type:+$gpu_type:}$gpus" SBATCH_GRES
  option mem "${memory_gb}G" SBATCH_MEM_PER_NODE
fi
option time "$time" SBATCH_TIMELIMIT
option account "$account" SBATCH_ACCOUNT
export SITE
# shellcheck disable=SC2086 # more_options is a list of words
exec sbatch "${options[@]}" $more_options "${users[@]}" "$job" "$@"
