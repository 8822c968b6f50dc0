# shellcheck shell=bash disable=SC2034
# A cluster that is not Zaratan, and is nowhere: other partitions, two GPUs a node of a kind that need not be named, no
# command `module`, local disk under a name of its own.
site_name="Lighthouse (made up)"
gpu_partition=accelerated
cpu_partition=serial
gpus_per_node=2
cores_per_gpu=4
memory_per_gpu_gb=8
train_time=01:30:00
local_disk=${NODE_SCRATCH:-/tmp}/ht
more_options="--comment=lighthouse"
about_storage="quota -s tells what is left of the 20 GB at home"
export CUDA_VISIBLE_DEVICES= # its GPUs are made up, too
