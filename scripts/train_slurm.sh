#!/usr/bin/env bash
# Trains on one or more nodes of a Slurm cluster, one process per GPU. From the repository's root:
#
#     SITE=mycluster scripts/submit.sh train configs/config.yaml [more arguments for python -m src.train]
#
# Partition, GPUs and time come from the site's file (docs/slurm.md); scripts/train_zaratan.sh, which has them in its
# #SBATCH lines, runs this file. HT_MODULES, HT_VENV and HT_PROCESSES are explained in scripts/slurm_job.sh. Five minutes
# before the time limit the run saves a checkpoint and the job queues itself again, to resume where it stopped.
#
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
set -euo pipefail

# Which signal asked this job to stop. USR1: the time limit is near. TERM: Slurm's goodbye (scancel, preemption, a
# lost node), after which Slurm knows by itself whether to queue the job again.
asked_by=
trap "asked_by=USR1" USR1
trap "asked_by=TERM" TERM

script=${script:-train_slurm.sh} # or that of a script which sources this one
# Slurm runs a copy of this file that lies elsewhere, so the way to the repository is the submit folder.
if ! cd "${SLURM_SUBMIT_DIR:-/}" || [[ -z ${SLURM_JOB_ID:-} || ! -f scripts/slurm_job.sh ]]; then
  echo "$script: submit it from the root of the repository: scripts/submit.sh train configs/config.yaml" >&2
  exit 2
fi
# shellcheck source=scripts/slurm_job.sh
source scripts/slurm_job.sh

config=configs/config.yaml
if [[ $# -gt 0 && $1 != -* ]]; then
  config=$1
  shift
fi
run=(--config "$config" "$@") # a run without a name is called slurm-$SLURM_JOB_ID
before=$(python scripts/newest_update.py "${run[@]}") || exit 2

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST:" \
  "nodes: $nodes, processes on each: $ranks_per_node, $config"
start_ranks "$nodes" "$ranks_per_node" "$cores" -m src.train "${run[@]}" &
step=$!
code=0
[[ -n $asked_by ]] || wait "$step" || true # a signal ends `wait` early
while [[ -n $asked_by ]] && kill -0 "$step" 2>/dev/null; do
  sleep 5 || true # a rank that has only just been started would die of the signal
  kill -USR1 "$step" 2>/dev/null || true # again and again: ranks that are still starting up take no notice
done
wait "$step" || code=$?

# 0: done. 2: a mistake of the user's. 75: saved because a signal asked for it. All else: a rank was killed, or died.
failed_at=$SLURM_SUBMIT_DIR/.slurm-$SLURM_JOB_ID.failed # the update at which a start has ended without progress
if [[ $code -eq 0 || $code -eq 2 || $asked_by == TERM ]]; then
  [[ $code -ne 0 ]] || rm -f "$failed_at"
  exit "$code"
fi
if [[ $code -eq 75 || $(python scripts/newest_update.py "${run[@]}") != "$before" ]]; then
  rm -f "$failed_at"
else
  # A start in between may have made progress without coming here: its node was lost, say.
  if [[ -f $failed_at && $(<"$failed_at") == "$before" ]]; then
    rm -f "$failed_at"
    echo "job $SLURM_JOB_ID: two starts in a row ended (exit code $code) before a new checkpoint, the last one being" \
      "of update $before; not queued again" >&2
    exit "$code"
  fi
  echo "$before" >"$failed_at"
fi
echo "job $SLURM_JOB_ID: ended with exit code $code; queueing it again, to resume from the newest checkpoint"
# In an array the last task has the job id of them all, by which all would be killed and queued again.
scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}" ||
  fail "Slurm will not queue this job again; to resume, submit it once more with --resume auto"
exit "$code"
