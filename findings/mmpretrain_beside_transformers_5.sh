#!/usr/bin/env bash
# mmpretrain 1.2.0 cannot be imported beside transformers 5 and pycocotools, its two optional packages: `import
# mmpretrain.models` ends in "TypeError: NoneType takes no arguments", although its requirement, transformers>=4.28.0, is met.
#
# Seen with mmpretrain 1.2.0, transformers 5.24.0, torch 2.11.0, Python 3.12. mmpretrain looks at the version of
# transformers alone, catches the failing import of a name that newer ones dropped, puts None in its place, and inherits
# from it. Expected: models that need no transformers, its vision transformers for example, can be imported.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 torch==2.11.0 torchvision==0.26.0 \
    mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0 pycocotools==2.0.11 transformers==5.24.0
"$folder/venv/bin/python" -W ignore - <<'PY'
try:
    import mmpretrain.models  # noqa: F401
except TypeError as error:
    assert 'takes no arguments' in str(error), error
    print('as described:', error)
else:
    raise SystemExit('changed: it can be imported')
PY
