#!/usr/bin/env bash
# OpenVINO 2026.4.1 reads an ONNX model whose Resize has antialias=1, says nothing, and resizes without: vision
# transformers shrink their position embedding like that, and graphs that contain their preprocessing the image.
#
# Seen with openvino 2026.4.1, onnxruntime 1.23.2, onnx 1.22.0, Python 3.11: 0, 1, ..., 7 halved linearly is
# 0.625, 2.5, 4.5, 6.375 in ONNX Runtime and in onnx's reference implementation; OpenVINO says 0.5, 2.5, 4.5, 6.5, with
# antialias=1 and with antialias=0. Expected: what the operator says, or an error, as for other attributes that OpenVINO
# does not support.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 onnx==1.22.0 onnxruntime==1.23.2 \
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

ramp = np.tile(np.arange(8, dtype=np.float32), (1, 1, 8, 1))


def resize(antialias):
    model = helper.make_model(helper.make_graph(
        [helper.make_node('Resize', ['x', '', '', 'size'], ['y'], mode='linear', antialias=antialias)], 'resize',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(np.array([1, 1, 4, 4]), 'size')]),
        opset_imports=[helper.make_opsetid('', 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    outputs = dict(
        onnx=ReferenceEvaluator(model).run(None, {'x': ramp})[0],
        onnxruntime=onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider']).run(None, {'x': ramp})[0],
        openvino=compiled([ramp])[0])
    return {name: output[0, 0, 0].round(4).tolist() for name, output in outputs.items()}


plain, smooth = resize(0), resize(1)
assert set(map(tuple, plain.values())) == {(0.5, 2.5, 4.5, 6.5)}, f'changed: {plain}'
assert smooth['onnx'] == smooth['onnxruntime'] == [0.625, 2.5, 4.5, 6.375], f'changed: {smooth}'
assert smooth['openvino'] == plain['openvino'], f'changed: {smooth}'
print(f'as described, with antialias: {smooth}')
PY
