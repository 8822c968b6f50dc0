# shellcheck shell=bash disable=SC2034
# Zaratan, University of Maryland, by its public pages and users' scripts: nobody has run this there yet.
# docs/slurm.md explains each name. The #SBATCH lines of scripts/*_zaratan.sh say the same.
site_name="Zaratan (University of Maryland)"
gpu_partition=gpu-h100
cpu_partition=standard
gpu_type=h100
gpus_per_node=4
cores_per_gpu=12
memory_per_gpu_gb=64
train_time=08:00:00         # up to 7 days; a shorter job starts sooner, and queues itself again
account=                    # the default account; for another: export SBATCH_ACCOUNT=NAME
modules=                    # those of the shell that submits; HT_MODULES names what `make install` had
local_disk=${TMPDIR:-/tmp}  # 12 TB on the nodes with H100s
nodes_have_internet=no      # login nodes have: install and fetch books there
about_storage="home 10 GB, scratch purged after 90 days; quotas: https://hpcc.umd.edu/hpcc/help/storage.html"
