#!/usr/bin/env bash
# The layers of mmpretrain 1.2.0's DeiT3 apply their first layer norm twice, and the second one never: the block of a
# vision transformer (arXiv 2010.11929) has one before the attention and another before the feed-forward network.
#
# Seen with mmpretrain 1.2.0, torch 2.11.0, Python 3.11: after a backward pass no `ln2` of any layer has a gradient, and
# an `ln2` filled with random numbers leaves the features as they are, bit for bit. Weights of DeiT III that are loaded
# into it give other features than the model they are from; so do training and fine-tuning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 torch==2.11.0 torchvision==0.26.0 \
    mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from mmpretrain.models import DeiT3

torch.manual_seed(0)
model = DeiT3(arch='small', img_size=32, patch_size=16)
model.init_weights()
model.eval()
images = torch.randn(2, 3, 32, 32)
features = model(images)[-1]
features.sum().backward()
second = [layer.ln2 for layer in model.layers]
unused = sum(norm.weight.grad is None and norm.bias.grad is None for norm in second)
with torch.no_grad():
    for norm in second:
        norm.weight.normal_()
        norm.bias.normal_()
    same = torch.equal(features, model(images)[-1])
assert unused == len(second) == 12 and same, f'changed: {unused} of {len(second)} are unused, same features: {same}'
print(f'as described: {unused} of {len(second)} layers never use ln2; random numbers in it change nothing')
PY
