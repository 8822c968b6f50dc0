# shellcheck shell=bash
# What the Slurm scripts of this folder share; they source it in the root of the repository, with their name in $script.
# It reads the site's file, loads the modules, finds the virtual environment, and knows how to start ranks.
#
# Environment variables:
#     SITE          which cluster this is, see scripts/site.sh
#     HT_MODULES    modules to load, after `module purge`, instead of the site's; name those that were loaded for
#                   `make install`. Neither set: the modules of the shell that called sbatch stay as they are.
#     HT_VENV       the virtual environment; .venv if not set
#     HT_PROCESSES  processes on each node; as many as the job has GPUs there (without any: tasks) if not set

# shellcheck source=scripts/site.sh
source scripts/site.sh

modules_from="modules in $site_file"
[[ -z ${HT_MODULES:-} ]] || modules=$HT_MODULES modules_from=HT_MODULES
if [[ -n $modules ]]; then
  set +eu # `module` and the files of /etc are not made for these
  # shellcheck disable=SC1091
  type module >/dev/null 2>&1 || source /etc/profile
  type module >/dev/null 2>&1 || fail "$modules_from is set, but there is no command \`module\` here"
  module purge
  # shellcheck disable=SC2086 # a list of names
  module load $modules || fail "could not load the modules $modules ($modules_from)"
  set -eu
fi

venv=${HT_VENV:-$PWD/.venv}
[[ -x $venv/bin/python ]] || fail "$venv: no virtual environment here; run make install, or set HT_VENV"
"$venv/bin/python" -c "" 2>/dev/null ||
  fail "$venv: its Python does not start on $(hostname); set HT_MODULES to the modules it was made with"
export PATH="$venv/bin:$PATH"
# Where compute nodes have no internet, a library might wait for an answer without these.
[[ $nodes_have_internet == yes ]] || export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# What compilers and caches write on the way; each rank makes the folder on its node.
if [[ -n $local_disk ]]; then
  export TMPDIR=$local_disk
  mkdir -p "$TMPDIR" || fail "$site_file: local_disk is $local_disk, which cannot be made on $(hostname)"
fi
export PYTHONUNBUFFERED=1
# What `pip install --user` put into the home folder is no part of the environment.
export PYTHONNOUSERSITE=1

# shellcheck disable=SC2034 # these are for the scripts that source this one
nodes=${SLURM_JOB_NUM_NODES:-1}
ranks_per_node=${HT_PROCESSES:-${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}}
[[ $ranks_per_node =~ ^[1-9][0-9]*$ ]] || fail "$ranks_per_node is no number of processes (HT_PROCESSES)"
# shellcheck disable=SC2034
cores=$((SLURM_CPUS_ON_NODE / ranks_per_node))

# Starts ranks: start_ranks NODES RANKS-PER-NODE CORES PYTHON-ARGUMENTS. One that fails takes the others with it.
# srun takes the place of the shell, so call this with & or in parentheses. A rank that is still starting up
# ignores USR1; training catches it. (srun of Slurm 22.05 and newer no longer reads the job's --cpus-per-task.)
start_ranks() {
  trap "" USR1
  # What only the ranks of this start know: by it they tell each other from strangers on the network.
  HOROVOD_TRANSFORMER_SECRET=$(od -An -vN32 -tx1 /dev/urandom | tr -d ' \n') || fail "no /dev/urandom here"
  export HOROVOD_TRANSFORMER_SECRET
  # shellcheck disable=SC2016 # each rank's own shell expands that
  exec srun --nodes="$1" --ntasks-per-node="$2" --ntasks=$(($1 * $2)) --cpus-per-task="$(($3 > 0 ? $3 : 1))" \
    --distribution=block --kill-on-bad-exit=1 --mpi=none --input=none \
    bash -c 'trap "" USR1; mkdir -p "$1"; exec "${@:2}"' rank "${TMPDIR:-/tmp}" python "${@:4}"
}
