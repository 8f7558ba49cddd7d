#!/usr/bin/env bash
# Train with one process a GPU:  bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Several nodes: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
# MAX_RESTARTS=N starts all processes again, up to N times, when one dies; each start resumes if there is a checkpoint.
# With fewer GPUs than processes the job runs on the CPU.
set -euo pipefail
. "$(dirname "$0")/launch_common.sh"
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
resume=()
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    case " ${*:3} " in *' --resume '[!-]* | *' --resume='*)
        fail 'MAX_RESTARTS resumes from the newest checkpoint of the work folder: leave out the value of --resume' ;;
    esac
    resume=(--resume)
fi
launch_processes train.py "$2" "$1" "${resume[@]}" "${@:3}"
