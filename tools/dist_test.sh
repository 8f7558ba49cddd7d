#!/usr/bin/env bash
# Evaluate with one process a GPU:  bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT as for dist_train.sh.
set -euo pipefail
. "$(dirname "$0")/launch_common.sh"
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
launch_processes test.py "$3" "$1" "$2" "${@:4}"
