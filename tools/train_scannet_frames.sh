#!/usr/bin/env bash
# The recipe's launcher:  bash tools/train_scannet_frames.sh [CONFIG] [arguments of train.py]
# Trains on every GPU with MIN_FREE_MIB (default 14787) of free memory and stamps begin and end.
# The data root is data/scannet-frames/, or DEIT_DATASETS when set.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;; esac
here=$(dirname "$0")
config=${1:-$here/../projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py}
[ $# -eq 0 ] || shift
[ -f "$config" ] || { echo "error: $config: no such config file" >&2; exit 2; }

. "$here/find_gpu.sh" -1 "${MIN_FREE_MIB:-14787}"

stamps=work_dirs/$(basename "$config" .py)/RUN-train_scannet_frames.txt
mkdir -p "$(dirname "$stamps")"
stamp() { echo "$1: $(date)" | tee -a "$stamps"; }
stamp begin
trap 'status=$?; stamp "end (status $status)"' EXIT
CUDA_VISIBLE_DEVICES=$gpu_id bash "$here/dist_train.sh" "$config" "$n_gpu_found" "$@"
