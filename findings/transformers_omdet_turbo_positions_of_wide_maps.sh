#!/usr/bin/env bash
# The encoder of OmDet-Turbo in transformers 5.24.0 gives the tokens of a feature map that is not square the position
# encodings of other tokens: it lists encodings column by column, and tokens row by row. (In a square map this only swaps
# x and y, for all tokens alike.)
#
# Seen with transformers 5.24.0, torch 2.11.0, Python 3.11: in a map of 3x3 the tokens of a row share half of their
# encoding, those of a column the other half; in a map of 2 rows and 3 columns neither do.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check setuptools==81.0.0 numpy==2.4.4 torch==2.11.0 \
    transformers==5.24.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from transformers import OmDetTurboConfig
from transformers.models.omdet_turbo.modeling_omdet_turbo import OmDetTurboHybridEncoder

encoder = OmDetTurboHybridEncoder(OmDetTurboConfig(
    encoder_hidden_dim=32, encoder_in_channels=[8, 8, 8], encoder_dim_feedforward=32)).eval()
seen = {}
encoder.encoder[0].register_forward_pre_hook(
    lambda layer, args, kwargs: seen.update(position=kwargs['pos_embed'][0]), with_kwargs=True)


def halves_shared(height, width):
    with torch.no_grad():
        encoder([torch.randn(1, 8, height * scale, width * scale) for scale in (4, 2, 1)])
    tokens = seen['position'].reshape(height, width, 2, 16)  # the encoder's tokens are rows of the map
    row = (tokens == tokens[:, :1]).all(-1).all(1).all(0)
    column = (tokens == tokens[:1]).all(-1).all(1).all(0)
    return sorted([row.tolist(), column.tolist()])


outcome = {size: halves_shared(*size) for size in ((3, 3), (2, 3))}
expected = {(3, 3): [[False, True], [True, False]], (2, 3): [[False, False], [False, False]]}
assert outcome == expected, f'changed: {outcome}'
print('as described: 3x3: rows share a half and columns the other; 2 rows of 3: no half is shared')
PY
