#!/usr/bin/env bash
# OpenVINO 2026.4.1 does not compile a product of a matrix and a vector that is scaled afterwards: MatMul with a constant
# of one dimension, then Mul or Div by a number. Its optimization multiplies the constant in advance and makes it one of
# three dimensions, which no longer fits. The mean of a distribution over fixed values, as in D-FINE's head, is such a
# product. With a constant of shape (n, 1), or without the scale, it compiles.
#
# Seen with openvino 2026.4.1 on a CPU, onnxruntime 1.32.0, onnx 1.22.0, Python 3.11: "[MatMulMultiplyFusion] ...
# CALLBACK HAS THROWN" for fixed and for dynamic shapes; onnx's reference implementation and ONNX Runtime run the model.
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
x = rng.random((2, 5, 4, 33)).astype(np.float32)


def run(shape, scaled, batch):
    values = numpy_helper.from_array(np.linspace(-1, 1, 33, dtype=np.float32).reshape(shape), 'values')
    nodes, constants = [helper.make_node('MatMul', ['x', 'values'], ['mean' if scaled else 'y'])], [values]
    if scaled:
        nodes.append(helper.make_node('Div', ['mean', 'scale'], ['y']))
        constants.append(numpy_helper.from_array(np.float32(4), 'scale'))
    model = helper.make_model(helper.make_graph(
        nodes, 'mean', [helper.make_tensor_value_info('x', TensorProto.FLOAT, [batch, 5, 4, 33])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [batch, 5, 4, *shape[1:]])], constants),
        opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    expected = ReferenceEvaluator(model).run(None, {'x': x})[0]
    found = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider']).run(None, {'x': x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    core = openvino.Core()
    try:
        found = core.compile_model(core.read_model(data), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(x)[0]
    except RuntimeError as error:
        return 'MatMulMultiplyFusion' if 'MatMulMultiplyFusion' in str(error) else str(error)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return 'equal'


for batch in (2, 'n'):
    results = {(shape, scaled): run(shape, scaled, batch) for shape in ((33,), (33, 1)) for scaled in (False, True)}
    assert results.pop(((33,), True)) == 'MatMulMultiplyFusion' and set(results.values()) == {'equal'}, results
print('as described: a scaled product with a vector does not compile; with (33, 1), or without the scale, it does')
PY
