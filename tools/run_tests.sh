#!/usr/bin/env bash
# Prepare the environment if there is none, then run the test suite:  bash tools/run_tests.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/setup_env.sh
python -c 'import hypothesis, moto, pytest_timeout, xdist' 2>/dev/null ||
    { echo 'installing requirements/tests.txt'; python -m pip install --quiet -r requirements/tests.txt; }
# Tests that bring their own weights or data say so themselves. Two files at a time, a thread each.
exec env -u DEIT_CHECKPOINT -u MMDET_DATASETS -u MINI_SCANNET_ROOT OMP_NUM_THREADS=1 \
    python -m pytest --numprocesses 2 --dist loadfile "$@"
