#!/usr/bin/env bash
# A checkpoint of a training with mmengine 0.10.7's OneCycleLR cannot be loaded with PyTorch's default settings, so the
# training cannot be resumed: the scheduler saves its annealing function, a function, as part of its state. PyTorch's own
# OneCycleLR has saved the name of the strategy instead since PyTorch 2.4.
#
# Seen with mmengine 0.10.7, torch 2.11.0, Python 3.11: the state of mmengine's scheduler has a function under
# `anneal_func`; torch.load raises UnpicklingError for it, naming builtins.getattr, and reads that of PyTorch's scheduler
# with the same settings.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 numpy==2.4.4 torch==2.11.0 mmengine==0.10.7
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import pickle

import torch
from mmengine.optim import OneCycleLR

weight = torch.nn.Parameter(torch.zeros(1))
schedulers = {
    'mmengine': OneCycleLR(torch.optim.SGD([weight], lr=0.1), eta_max=1.0, total_steps=10),
    'torch': torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD([weight], lr=0.1), max_lr=1.0, total_steps=10),
}
outcome = {}
for name, scheduler in schedulers.items():
    torch.save(dict(param_schedulers=[scheduler.state_dict()]), f'{name}.pth')
    try:
        torch.load(f'{name}.pth')
        outcome[name] = 'loads'
    except pickle.UnpicklingError as error:
        outcome[name] = 'getattr' if 'getattr' in str(error) else str(error)
assert outcome == dict(mmengine='getattr', torch='loads'), f'changed: {outcome}'
assert callable(schedulers['mmengine'].state_dict()['anneal_func'])
print("as described: torch.load refuses the state of mmengine's OneCycleLR and reads that of PyTorch's")
PY
