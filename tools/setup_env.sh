#!/usr/bin/env bash
# Prepare the environment:  bash tools/setup_env.sh        (or source it, to have the environment active afterwards)
#
# An active environment that can already run the project is used as it is. Otherwise .venv is made beside this
# repository and filled from requirements/: about 5 GB of disk and, on 2 cores, about 8 minutes, most of them for
# compiling mmcv. Run it again after an interruption: what is finished is skipped.
#
#   PYTHON=python3.11     the interpreter to make .venv with
#   VENV=path             another place for the environment
#   MMCV_CUDA=1           compile mmcv's CUDA operators too (needs nvcc; DETR itself uses none of them)

setup_env() {
    local root venv log
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv=${VENV:-$root/.venv}
    log=$venv/setup_env.log

    fail() { echo "setup_env: $1" >&2; return 1; }

    # Whether the active Python runs the project with torch's safe loading, from this checkout.
    can_run() {
        python - "$root" >/dev/null 2>&1 <<'PY'
import importlib.metadata as metadata, pathlib, sys
assert tuple(map(int, metadata.version('torch').split('.')[:2])) >= (2, 6)
import mmcv.ops, mmdet, mmpretrain.models, pycocotools, tensorboard, tqdm
import deit_detr
assert pathlib.Path(sys.argv[1]) in pathlib.Path(deit_detr.__file__).parents
PY
    }

    # step TITLE COMMAND...: run quietly into the log, with the time gone by and the compiler's progress.
    step() {
        local title=$1 start=$SECONDS pid status=0
        shift
        echo "== $title" >>"$log"
        "$@" >>"$log" 2>&1 &
        pid=$!
        while kill -0 "$pid" 2>/dev/null; do
            sleep 1
            [ -t 1 ] || continue
            printf '\r%s: %d s %s ' "$title" $((SECONDS - start)) "$(tail -n 3 "$log" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1)"
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
        command -v "$python" >/dev/null || { fail "no $python: install Python 3.10 to 3.12, or set PYTHON"; return 1; }
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
            { fail "$("$python" --version) is not supported: set PYTHON to a Python 3.10, 3.11 or 3.12"; return 1; }
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

    if ! python -c 'import mmcv._ext' 2>/dev/null; then
        local free
        free=$(df -Pk "$venv" | awk 'NR == 2 {print int($4 / 1048576)}')
        [ "$free" -ge 10 ] || { fail "$free GB free in $venv, 10 GB needed: free some disk or set VENV to another place"; return 1; }
        command -v "${CXX:-g++}" >/dev/null ||
            { fail "no C++ compiler for mmcv: install one (Debian: apt-get install g++), or see 'mmcv will not build' in README.md"; return 1; }
        python -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
            { fail "no Python.h for mmcv: install the headers of your Python (Debian: apt-get install python3-dev)"; return 1; }
    fi

    local pip=(python -m pip install --disable-pip-version-check) cuda=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES='')
    if [ "${MMCV_CUDA:-0}" = 1 ]; then cuda=(FORCE_CUDA=1); fi
    step 'torch and build tools (1 to 3 minutes)' "${pip[@]}" -r "$root/requirements/build.txt" || return 1
    # -O1 -g0 halves the compile time; none of these operators is in DETR's path. One job a core.
    step 'mmcv, compiled here once (5 to 15 minutes)' env "${cuda[@]}" MMCV_WITH_OPS=1 CFLAGS='-O1 -g0 -w' MAX_JOBS="$(nproc)" \
        "${pip[@]}" -v --no-build-isolation -r "$root/requirements/mmcv.txt" || return 1
    step 'the other requirements' "${pip[@]}" -r "$root/requirements/runtime.txt" -r "$root/requirements/tests.txt" || return 1
    step 'mim, for mim train mmdet' "${pip[@]}" --no-deps -r "$root/requirements/mim.txt" || return 1
    step 'this project' "${pip[@]}" --no-build-isolation --no-deps -e "$root" || return 1
    can_run || { python -c 'import deit_detr'; fail "the environment is installed but does not import; see $log"; return 1; }
    echo "environment: $venv"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then set -euo pipefail; fi
setup_env
