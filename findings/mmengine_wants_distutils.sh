#!/usr/bin/env bash
# mmengine 0.10.7 imports distutils when a Runner describes its environment. Python 3.12 dropped distutils, and pip makes
# environments without setuptools, which has a copy: collect_env then ends in ModuleNotFoundError, although mmengine was
# installed with all its requirements.
#
# Seen with mmengine 0.10.7 and torch 2.11.0 on Python 3.12 and 3.13, after removing setuptools, which this torch asks for.
# Expected: it is not needed to describe an environment.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo 'set PYTHON to a Python 3.12 or newer'; exit 2; }
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 mmengine==0.10.7
"$folder/venv/bin/python" -m pip uninstall -q -y setuptools
"$folder/venv/bin/python" -W ignore - <<'PY'
from mmengine.utils.dl_utils import collect_env

try:
    collect_env()
except ModuleNotFoundError as error:
    assert error.name == 'distutils', error
    print('as described:', error)
else:
    raise SystemExit('changed: it works without distutils')
PY
