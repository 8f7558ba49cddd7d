#!/usr/bin/env bash
# Prepare the environment if there is none, then run the test suite:
#     bash tools/run_tests.sh [--quick] [pytest arguments]
# All tests take about ten minutes on 2 cores. --quick takes less than 90 seconds: it leaves out the tests marked slow,
# runs a twentieth of the fuzz cases, and begins with the tests that failed last time (-x stops at the first failure).
set -euo pipefail
cd "$(dirname "$0")/.."

# Whether everything is installed, from this checkout. setup_env.sh also imports it, which takes 5 seconds and is left out
# with --quick, and with CHECKED=yes where that script has just run.
installed() {
    local folder
    folder=$(python - 2>/dev/null <<'PY'
import os
from importlib.util import find_spec

assert all(map(find_spec, ('hypothesis', 'importlinter', 'moto', 'pytest_timeout', 'torch', 'xdist')))
assert find_spec('deit_detr').origin.startswith(os.getcwd() + os.sep)
print(os.path.dirname(find_spec('mmcv_ops').origin))
PY
    ) && diff -qr -x __pycache__ projects/mmcv_ops/mmcv_ops "$folder" >/dev/null
}

quick=
if [ "${1:-}" = --quick ]; then
    shift
    quick=yes
    set -- -m 'not slow' --failed-first "$@"
    export FUZZ_SCALE=${FUZZ_SCALE:-0.05}
fi
[ "$quick${CHECKED:-}" ] && installed || . tools/setup_env.sh
installed || { echo 'installing requirements/tests.txt'; python -m pip install --quiet -r requirements/tests.txt; }
# Tests that need weights or data set these variables themselves. Two processes share the tests, with one thread each:
# one that has nothing left takes tests from the end of the other's list.
exec env -u DEIT_CHECKPOINT -u DEIT_DATASETS -u MMDET_DATASETS -u MINI_SCANNET_ROOT -u PYTHONUNBUFFERED OMP_NUM_THREADS=1 \
    python -m pytest --numprocesses 2 --dist worksteal "$@"
