#!/usr/bin/env bash
# mmpretrain 1.2.0 resizes the position embedding of a vision transformer when a checkpoint is for another image size,
# but not for a model without a class token: it takes the checkpoint's class token for a patch and ends in an assertion.
#
# Seen with mmpretrain 1.2.0, torch 2.11.0, Python 3.11: the same checkpoint (32x32 pixels, with a class token) loads into
# a model of 32x32 without a class token, and into one of 64x64 with it; into one of 64x64 without it, load_state_dict
# raises an AssertionError about the length of pos_embed, "17 (...) 4*4+0". Expected: the class token is dropped first, as
# for 32x32.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 torch==2.11.0 torchvision==0.26.0 \
    mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0
"$folder/venv/bin/python" -W ignore - <<'PY'
from mmpretrain.models import VisionTransformer


def build(size, token):
    return VisionTransformer(
        arch='deit-tiny', img_size=size, patch_size=8, with_cls_token=token, out_type='cls_token' if token else 'featmap')


def load(size, token):
    try:
        build(size, token).load_state_dict(saved, strict=False)
    except AssertionError as error:
        return 'assertion: 17 is not 4*4+0' if '(17)' in str(error) and '(4*4+0)' in str(error) else repr(error)
    return 'loaded'


saved = build(32, True).state_dict()
outcomes = {case: load(*case) for case in ((32, False), (64, True), (64, False))}
expected = {(32, False): 'loaded', (64, True): 'loaded', (64, False): 'assertion: 17 is not 4*4+0'}
assert outcomes == expected, f'changed: {outcomes}'
for (size, token), outcome in outcomes.items():
    print(f'as described: {size}x{size}, {"with" if token else "without"} class token: {outcome}')
PY
