#!/usr/bin/env bash
# Trains on this machine: launch/run_local.sh PROCESSES KEY=VALUE ...
#
#   launch/run_local.sh 4 experiment=smoke_cpu
#
# One process per GPU, or any number of them on a CPU. Variables that are set already are left alone.
set -euo pipefail

if [[ $# -lt 1 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/run_local.sh PROCESSES KEY=VALUE ..." >&2
    exit 2
fi
processes=$1
shift

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# threads of each process: together no more than there are cores
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# SIGUSR1 asks a run to stop too, and torchrun would die of it; a save may take longer than the 30 s that torchrun grants
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc-per-node "$processes" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 600 -m launch.train "$@"
