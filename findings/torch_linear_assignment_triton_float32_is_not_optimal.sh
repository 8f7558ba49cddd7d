#!/usr/bin/env bash
# The Triton kernel of torch-linear-assignment 0.1.0, which CUDA tensors get, returns an assignment of float32 costs that
# costs more than SciPy's, if one cost is much larger than the others: it adds and subtracts costs in float32, where
# SciPy converts them to float64 first. Large costs are a common way to forbid a pair.
#
# Seen with torch-linear-assignment 0.1.0, torch 2.11.0, triton 3.6.0, SciPy 1.18.1, Python 3.11, the kernel in Triton's
# interpreter: for [[7.78, 1e9], [6.31, 1e9]] it returns pairs that cost 1.47 more than SciPy's; for the same costs in
# float64 it returns SciPy's. The package's function for CPU tensors calls SciPy and is right.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 numpy==2.3.5 scipy==1.17.1 torch==2.11.0 \
    triton==3.6.0 torch-linear-assignment==0.1.0
cd "$folder"
TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from torch_linear_assignment import _triton, batch_linear_assignment

costs = torch.tensor([[[7.78, 1e9], [6.31, 1e9]]])
total = lambda chosen: costs.double().gather(2, chosen[..., None]).sum().item()
scipy = batch_linear_assignment(costs)
kernel = {dtype: _triton._solve(costs.to(dtype), 'full')[0] for dtype in (torch.float32, torch.float64)}
excess = {dtype: total(chosen.long()) - total(scipy) for dtype, chosen in kernel.items()}
assert round(excess[torch.float32], 2) == 1.47 and excess[torch.float64] == 0, f'changed: {excess}'
print(f'as described: the float32 assignment costs {excess[torch.float32]:.2f} more than the cheapest')
PY
