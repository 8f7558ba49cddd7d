#!/usr/bin/env bash
# Prepare the environment:  bash tools/setup_env.sh        (or source it, to have the environment active afterwards)
#
# An active environment that can already run the project is used as it is. Otherwise .venv is made beside this
# repository and filled from requirements/: about 6 GB of disk and 2 to 3 minutes. Nothing is compiled. Run it again
# after an interruption, or after an update of this repository: what is finished is skipped.
#
#   PYTHON=python3.12     the interpreter to make .venv with
#   VENV=path             another place for the environment

setup_env() {
    local root venv log
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv=${VENV:-$root/.venv}
    log=$venv/setup_env.log

    fail() { echo "setup_env: $1" >&2; return 1; }

    # Whether the active Python runs the project with torch's safe loading, from this checkout.
    can_run() {
        python - "$root" >/dev/null 2>&1 <<'PY'
import filecmp, importlib.metadata as metadata, pathlib, sys
assert tuple(map(int, metadata.version('torch').split('.')[:2])) >= (2, 6)
import mmcv_ops, pycocotools, tensorboard, tqdm
import deit_detr  # and with it mmcv, mmdet and mmpretrain
root = pathlib.Path(sys.argv[1])
assert root in pathlib.Path(deit_detr.__file__).parents
# mmcv_ops is copied into the environment: is it this checkout's?
source, installed = root / 'projects/mmcv_ops/mmcv_ops', pathlib.Path(mmcv_ops.__file__).parent
names = [path.name for path in source.glob('*.py')]
assert filecmp.cmpfiles(source, installed, names, shallow=False)[0] == names
PY
    }

    # mmcv_ops goes first: mmcv-lite cannot be imported without it. Where mmcv is a compiled one, that one is used.
    install_project() {
        python -m pip install --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
            "$root/projects/mmcv_ops" &&
            python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e "$root"
    }

    # compile_modules [PACKAGE...]: pip would use one process, and compile the packages' tests. Some packages hold
    # files that no Python compiles: hence `|| true`.
    compile_modules() (
        cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
        nice python -m compileall -qq -j 0 -x '/tests/' "${@:-.}" || true
    )

    # step TITLE COMMAND...: run quietly into the log, with the time gone by and what pip is at.
    step() {
        local title=$1 start=$SECONDS pid status=0
        shift
        echo "== $title" >>"$log"
        "$@" >>"$log" 2>&1 &
        pid=$!
        while kill -0 "$pid" 2>/dev/null; do
            sleep 1
            [ -t 1 ] || continue
            printf '\r%s: %d s %-40.40s' "$title" $((SECONDS - start)) "$(grep -oE '^(Collecting|Installing collected) [^ ]+' "$log" | tail -n 1)"
        done
        wait "$pid" || status=$?
        if [ -t 1 ]; then printf '\r'; fi
        if [ "$status" -ne 0 ]; then
            tail -n 15 "$log" >&2
            fail "'$title' failed; the whole output is in $log"
            return 1
        fi
        echo "$title: done in $((SECONDS - start)) s"
    }

    if can_run; then
        echo "environment: $(python -c 'import sys; print(sys.prefix)') (already complete)"
        return 0
    fi

    if [ ! -x "$venv/bin/python" ]; then
        local python=${PYTHON:-python3}
        command -v "$python" >/dev/null || { fail "no $python: install Python 3.10 to 3.13, or set PYTHON"; return 1; }
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
            { fail "$("$python" --version) is not supported: set PYTHON to a Python 3.10 to 3.13"; return 1; }
        "$python" -c 'import ensurepip' 2>/dev/null ||
            { fail "$python has no venv module: install it (Debian: apt-get install python3-venv)"; return 1; }
        echo "environment: making $venv with $("$python" --version)"
        "$python" -m venv "$venv" || return 1
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate" || return 1
    if can_run; then
        echo "environment: $venv (already complete)"
        return 0
    fi

    local free pip=(python -m pip install --disable-pip-version-check --no-compile)
    if ! python -c 'import torch' 2>/dev/null; then
        free=$(df -Pk "$venv" | awk 'NR == 2 {print int($4 * 1024 / 1e9)}')
        [ "$free" -ge 8 ] || { fail "$free GB free in $venv, 8 GB needed: free some disk or set VENV to another place"; return 1; }
        [ "$free" -ge 10 ] || pip+=(--no-cache-dir)  # of 1.8 GB
    fi
    # PyTorch first: its wheels, the largest, are gone when the others are unpacked, and meanwhile it is compiled.
    step 'PyTorch (1 to 2 minutes)' "${pip[@]}" -c "$root/requirements/runtime.txt" torch torchvision || return 1
    compile_modules torch sympy >>"$log" 2>&1 &
    step 'OpenMMLab and the rest (1 minute)' "${pip[@]}" -r "$root/requirements/runtime.txt" -r "$root/requirements/tests.txt" || return 1
    step 'mim, for mim train mmdet' "${pip[@]}" --no-deps -r "$root/requirements/mim.txt" || return 1
    step "mmcv's operators and this project" install_project || return 1
    step 'byte code' compile_modules || return 1
    can_run || { python -c 'import deit_detr'; fail "the environment is installed but does not import; see $log"; return 1; }
    echo "environment: $venv"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then set -euo pipefail; fi
setup_env
