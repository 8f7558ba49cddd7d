#!/usr/bin/env bash
# Train with one process a GPU:  bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Several nodes: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
# With fewer GPUs than processes the job is rehearsed on the CPU.
set -euo pipefail
. "$(dirname "$0")/launch_common.sh"
[ $# -ge 2 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
launch_processes train.py "$2" "$1" "${@:3}"
