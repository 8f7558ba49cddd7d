#!/usr/bin/env bash
# Prepare the environment if there is none, then run the test suite:
#     bash tools/run_tests.sh [--quick] [pytest arguments]
# All of it takes about ten minutes on 2 cores. --quick is for the time while something is written: without the tests
# that are marked slow, and with a tenth of the cases of the fuzz tests, it takes two minutes. What failed the
# last time comes first, so that the answer comes soon on a busy machine, too; with -x it stops there.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --quick ]; then
    shift
    set -- -m 'not slow' --failed-first "$@"
    export FUZZ_SCALE=${FUZZ_SCALE:-0.1}
fi
. tools/setup_env.sh
python -c 'import hypothesis, moto, pytest_timeout, xdist' 2>/dev/null ||
    { echo 'installing requirements/tests.txt'; python -m pip install --quiet -r requirements/tests.txt; }
# Tests that bring their own weights or data say so themselves. Two files at a time, a thread each, in the order that
# tests/conftest.py gives them.
exec env -u DEIT_CHECKPOINT -u MMDET_DATASETS -u MINI_SCANNET_ROOT -u PYTHONUNBUFFERED OMP_NUM_THREADS=1 \
    python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
