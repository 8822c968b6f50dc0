# shellcheck shell=bash
# Reads the file of this cluster, which SITE names: sites/NAME.sh by its name, or any file by its path. For scripts that
# source this one in the root of the repository, with their name in $script. docs/slurm.md explains what the file holds.

fail() {
  echo "${script:?}: $*" >&2
  exit 2
}

known_sites() {
  local file
  for file in sites/*.sh; do
    file=${file##*/}
    printf '%s, ' "${file%.sh}"
  done
}

[[ -n ${SITE:-} ]] || fail "which cluster is this? Set SITE to one of these: $(known_sites)or to a file (docs/slurm.md)"
site_file=$SITE
[[ $site_file == */* ]] || site_file=sites/$SITE.sh
[[ -f $site_file ]] || fail "SITE=$SITE: there is no file $site_file; take $(known_sites)or write one (docs/slurm.md)"

# What holds where the file does not say.
# shellcheck disable=SC2034 # these are for the scripts that source this one
site_name=$SITE gpu_partition='' cpu_partition='' gpu_type='' cores_per_gpu=8 memory_per_gpu_gb=32 \
  train_time=08:00:00 account='' more_options='' modules='' local_disk='' nodes_have_internet=no about_storage=''
gpus_per_node=''
set +u # one may name variables that only a job has
# shellcheck source=sites/zaratan.sh
source "$site_file"
set -u
for name in gpus_per_node cores_per_gpu memory_per_gpu_gb; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$site_file: $name should be a whole number, not '${!name}'"
done
