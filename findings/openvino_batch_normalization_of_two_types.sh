#!/usr/bin/env bash
# OpenVINO 2026.4.1 does not read a BatchNormalization whose input is float16 and whose scale, bias, mean and variance are
# float32. ONNX allows different types there since opset 15, and mixed precision gives such graphs: a convolution in
# float16 before a normalization that keeps its statistics in float32.
#
# Seen with openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.22.0, Python 3.11: onnx's checker accepts the model, its reference
# implementation and ONNX Runtime run it; OpenVINO raises "Input element types do not match".
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 onnx==1.22.0 onnxruntime==1.32.0 \
    openvino==2026.4.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

sys.modules['openvino_telemetry'] = None  # or the import of openvino sends usage data
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(0)
x = rng.normal(size=(1, 3, 4, 4)).astype(np.float16)


def run(kind):
    numbers = dict(scale=rng.uniform(0.5, 2, 3), bias=rng.normal(size=3), mean=rng.normal(size=3),
                   var=rng.uniform(0.5, 2, 3))
    weights = [numpy_helper.from_array(value.astype(kind), name) for name, value in numbers.items()]
    model = helper.make_model(helper.make_graph(
        [helper.make_node('BatchNormalization', ['x', *numbers], ['y'])], 'norm',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT16, x.shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT16, x.shape)], weights),
        opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    expected = ReferenceEvaluator(model).run(None, {'x': x})[0]
    found = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider']).run(None, {'x': x})[0]
    assert found.dtype == expected.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01)
    core = openvino.Core()
    try:
        found = core.compile_model(core.read_model(data), 'CPU')(x)[0]
    except RuntimeError as error:
        return 'types' if 'Input element types do not match' in str(error) else str(error)
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01)
    return 'equal'


results = {kind.__name__: run(kind) for kind in (np.float16, np.float32)}
assert results == dict(float16='equal', float32='types'), f'changed: {results}'
print(f'as described, float16 input and statistics of each type: {results}')
PY
