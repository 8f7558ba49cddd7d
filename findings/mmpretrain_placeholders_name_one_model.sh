#!/usr/bin/env bash
# mmpretrain 1.2.0 without transformers registers a placeholder for each multimodal model; every one of them says that
# RAMOpenset needs more packages, whichever model was asked for.
#
# Seen with mmpretrain 1.2.0, torch 2.11.0, Python 3.12: BlipCaption and CLIP both answer "RAMOpenset requires
# extra multi-modal dependencies". Expected: the name of the model that was asked for.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 torch==2.11.0 torchvision==0.26.0 \
    mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import mmpretrain.models  # noqa: F401
from mmpretrain.registry import MODELS

for name in ('BlipCaption', 'CLIP'):
    try:
        MODELS.get(name)()
    except ImportError as error:
        assert str(error).startswith('RAMOpenset requires'), f'changed: {error}'
        print(f'as described: {name} answers "{error}"')
    else:
        raise SystemExit(f'changed: {name} can be built')
PY
