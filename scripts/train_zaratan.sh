#!/usr/bin/env bash
# Trains on one node of a Slurm cluster, one process per GPU. From the repository's root:
#
#     sbatch scripts/train_zaratan.sh configs/config.yaml [more arguments for python -m src.train]
#
# The defaults below fit Zaratan (University of Maryland): one node with four H100s. Nothing here needs editing:
# options of sbatch win over them, and so do its variables (SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT):
#
#     sbatch --account=my-account --time=02:00:00 scripts/train_zaratan.sh configs/config.yaml
#     sbatch --partition=gpu --gres=gpu:a100:2 scripts/train_zaratan.sh configs/config.yaml --output_dir /scratch/b
#
# Environment variables:
#     HT_MODULES    modules to load, after `module purge`; name those that were loaded for `make install`.
#                   Not set: the modules of the shell that called sbatch stay as they are.
#     HT_VENV       the virtual environment; .venv if not set
#     HT_PROCESSES  how many processes train; as many as the job has GPUs (without any: tasks) if not set
#
# Five minutes before the time limit the run saves a checkpoint and the job queues itself again; it then resumes
# where it stopped. docs/zaratan.md tells more.
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

fail() {
  echo "train_zaratan.sh: $*" >&2
  exit 2
}

# Which signal asked this job to stop. USR1: the time limit is near. TERM: Slurm's goodbye (scancel, preemption),
# after which Slurm knows by itself whether to queue the job again.
asked_by=
trap "asked_by=USR1" USR1
trap "asked_by=TERM" TERM

# --- What to run, and where ---

[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_SUBMIT_DIR:-} ]] ||
  fail "this is a Slurm job: submit it with sbatch scripts/train_zaratan.sh configs/config.yaml"
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
cd "$SLURM_SUBMIT_DIR"
[[ -f src/train.py && -d horovod_transformer ]] ||
  fail "$SLURM_SUBMIT_DIR is not the root of the repository: cd to it, then sbatch scripts/train_zaratan.sh"
[[ ${SLURM_JOB_NUM_NODES:-1} -eq 1 ]] || fail "this script uses one node, but the job has $SLURM_JOB_NUM_NODES"

config=configs/config.yaml
if [[ $# -gt 0 && $1 != -* ]]; then
  config=$1
  shift
fi
[[ -f $config ]] || fail "$config: no such config (seen from $SLURM_SUBMIT_DIR)"

# Where the run writes, as python -m src.train will understand its arguments.
output_dir=.
previous=
for argument in "$@"; do
  [[ $previous != --output_dir ]] || output_dir=$argument
  [[ $argument != --output_dir=* ]] || output_dir=${argument#*=}
  previous=$argument
done

# --- The environment ---

if [[ -n ${HT_MODULES:-} ]]; then
  set +eu # `module` and the files of /etc are not made for these
  # shellcheck disable=SC1091
  type module >/dev/null 2>&1 || source /etc/profile
  type module >/dev/null 2>&1 || fail "HT_MODULES is set, but there is no command \`module\` here"
  module purge
  # shellcheck disable=SC2086 # a list of names
  module load $HT_MODULES || fail "could not load the modules $HT_MODULES (HT_MODULES)"
  set -eu
fi

venv=${HT_VENV:-$SLURM_SUBMIT_DIR/.venv}
[[ -x $venv/bin/horovodrun ]] || fail "$venv: no environment with Horovod here; run make install, or set HT_VENV"
"$venv/bin/python" -c "" 2>/dev/null ||
  fail "$venv: its Python does not start on $(hostname); set HT_MODULES to the modules it was made with"
# horovodrun starts helpers by the name `python`.
export PATH="$venv/bin:$PATH"
# Compute nodes have no internet: without these a library might wait for an answer.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export PYTHONUNBUFFERED=1
# What `pip install --user` put into the home folder is no part of the environment.
export PYTHONNOUSERSITE=1

processes=${HT_PROCESSES:-${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS:-1}}}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "$processes is no number of processes (HT_PROCESSES)"

# --- One job at a time may write to a folder; a job that is started again resumes ---

mkdir -p "$output_dir/logs"
writer_file=$output_dir/logs/.slurm-job
writer=$(cat "$writer_file" 2>/dev/null || true)
arguments=(--config "$config" --run_name "slurm-$SLURM_JOB_ID")
if [[ $writer == "$SLURM_JOB_ID" ]]; then
  # What the run was to begin with counts no longer.
  while [[ $# -gt 0 ]]; do
    case $1 in
      --init_from | --resume) shift ;;
      --init_from=* | --resume=*) ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
  arguments+=(--resume auto)
else
  [[ -z $writer || -z $(squeue --noheader --jobs="$writer" 2>/dev/null) ]] ||
    fail "job $writer writes to $(realpath "$output_dir"); give this one another folder with --output_dir DIR"
  echo "$SLURM_JOB_ID" >"$writer_file"
  arguments+=("$@")
fi

# --- Train, and pass on Slurm's warnings ---

# Prints the ranks below a process. What a rank has started has its HOROVOD_RANK, too, but must not be signalled.
ranks() {
  local pid
  for pid in $(pgrep -P "$1"); do
    if grep -qsz "^HOROVOD_RANK=" "/proc/$pid/environ"; then
      echo "$pid"
    else
      ranks "$pid"
    fi
  done
}

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $(hostname): $processes process(es), $config"
# USR1 would kill horovodrun, and ranks that are not training yet. Training itself catches it.
(
  trap "" USR1
  exec horovodrun -np "$processes" python -m src.train "${arguments[@]}"
) &
launcher=$!

code=0
# A signal ends `wait` early.
[[ -n $asked_by ]] || wait "$launcher" || code=$?
if [[ -n $asked_by ]]; then
  # Again and again: ranks that are still starting up take no notice.
  while kill -0 "$launcher" 2>/dev/null; do
    for rank in $(ranks "$launcher"); do
      kill -USR1 "$rank" 2>/dev/null || true
    done
    sleep 2 || true
  done
  code=0
  wait "$launcher" || code=$?
fi

if [[ $asked_by == USR1 && $code -eq 0 ]]; then
  echo "job $SLURM_JOB_ID: the time limit is near; queueing again, to resume from the checkpoint"
  scontrol requeue "$SLURM_JOB_ID" ||
    fail "Slurm will not queue this job again; to resume, submit it once more with --resume auto"
fi
exit "$code"
