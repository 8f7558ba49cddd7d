#!/usr/bin/env bash
# ONNX Runtime 1.23.2's quantize_dynamic writes a wrong model, without a message, if two Gemm nodes with transB=1 share
# their weight: it transposes the stored weight in place once for each node, so after the second node it lies as before,
# while both nodes have become a product without transposition.
#
# Seen with onnxruntime 1.23.2, onnx 1.22.0, Python 3.11: two layers of 64 by 64 with one weight are off by more than
# their own mean size after quantization, by less than 3 percent if the second layer has a copy of the weight, as
# expected of 8 bits. onnxruntime 1.32.0 quantizes both right.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 onnx==1.22.0 onnxruntime==1.23.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
weight = rng.normal(size=(64, 64)).astype(np.float32)
images = rng.normal(size=(20, 64)).astype(np.float32)


def run(path):
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'x': images})[0]


def error(second):
    weights = [numpy_helper.from_array(weight, name) for name in sorted({'first', second})]
    model = helper.make_model(helper.make_graph(
        [helper.make_node('Gemm', ['x', 'first'], ['hidden'], name='a', transB=1),
         helper.make_node('Gemm', ['hidden', second], ['y'], name='b', transB=1)], 'layers',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['n', 64])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, ['n', 64])], weights),
        opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, 'float.onnx')
    quantize_dynamic('float.onnx', 'int8.onnx', weight_type=QuantType.QInt8)
    exact = run('float.onnx')
    np.testing.assert_allclose(exact, images @ weight.T @ weight.T, rtol=1e-3, atol=1e-3)
    return np.abs(run('int8.onnx') - exact).mean() / np.abs(exact).mean()


shared, copied = error('first'), error('second')
assert shared > 1 and copied < 0.03, f'changed: {shared}, {copied}'
print(f'as described: mean error {shared:.0%} of the mean output with a shared weight, {copied:.1%} with a copy of it')
PY
