#!/usr/bin/env bash
# Check that the whole project works on this machine's GPU:  bash tools/check_gpu.sh
# Prepares the environment if it does not exist, renders rooms, trains each family in float32 and bfloat16, compares
# losses with those of the CPU and memory with what preflight announces, and runs the commands. Prints a table; the exit
# status is 1 if a check failed. Without a GPU, the CPU is checked with the small recipes.
# Arguments go to tools/misc/check_gpu.py (see its --help), e.g. --only losses training --families dino --json dino.json
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;; esac
tools=$(cd "$(dirname "$0")" && pwd)
. "$tools/setup_env.sh"
exec python -W ignore "$tools/misc/check_gpu.py" "$@"
