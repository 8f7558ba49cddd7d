#!/usr/bin/env bash
# ONNX Runtime's quantize_static fails with "No data is collected." if the number of calibration inputs is a multiple of
# its option CalibMaxIntermediateOutputs, which limits how many of them are held in memory: after the last full portion
# it asks for the rest, of which there is none, and takes that for no data at all. One input more or less is fine.
#
# Seen with onnxruntime 1.32.0, onnx 1.22.0, Python 3.11: with a limit of 4, 3, 5, 6 and 7 inputs work; 4 and 8 raise
# ValueError.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 onnx==1.22.0 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import logging

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
weight = numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), 'weight')
model = helper.make_model(helper.make_graph(
    [helper.make_node('MatMul', ['x', 'weight'], ['y'], name='layer')], 'layers',
    [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['n', 64])],
    [helper.make_tensor_value_info('y', TensorProto.FLOAT, ['n', 64])], [weight]),
    opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, 'float.onnx')


class Inputs(CalibrationDataReader):
    def __init__(self, number):
        self.feeds = iter([{'x': rng.normal(size=(5, 64)).astype(np.float32)} for _ in range(number)])

    def get_next(self):
        return next(self.feeds, None)


results = {}
for number in range(3, 9):
    try:
        quantize_static('float.onnx', 'int8.onnx', Inputs(number), extra_options={'CalibMaxIntermediateOutputs': 4})
        results[number] = 'works'
    except ValueError as error:
        results[number] = str(error)
failing = [number for number, result in results.items() if result == 'No data is collected.']
assert failing == [4, 8] and set(results.values()) == {'works', 'No data is collected.'}, f'changed: {results}'
print(f'as described, with a limit of 4: {results}')
PY
