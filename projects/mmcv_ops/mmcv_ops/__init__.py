"""The compiled operators of mmcv 2.1 for detection, in PyTorch, torchvision and Triton.

``mmcv-lite`` is mmcv without ``mmcv._ext``, the module that ``mmcv.ops`` loads by name. The file ``mmcv/_ext.py`` of
this distribution replaces it and gets every name from :func:`operator`. The operators work on every device and with
every floating type that PyTorch and torchvision support; half and bfloat16 are computed in float32. If a compiled mmcv
is installed, Python imports its module instead; :func:`complete` adds operators on CUDA to a build without CUDA.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

from torch import Tensor

from mmcv_ops import boxes, carafe, deform_conv, deformable_attention, focal_loss, masked_conv, rois, rotated
from mmcv_ops.common import as_operator

__version__ = '0.1.0'

#: Name in ``mmcv._ext`` -> function, with the signature that mmcv 2.1 calls. Results are written into tensors that mmcv
#: passes.
OPERATORS: dict[str, Callable] = {function.__name__: as_operator(function) for function in (
    boxes.bbox_overlaps,
    boxes.nms,
    boxes.nms_match,
    boxes.softnms,
    carafe.carafe_backward,
    carafe.carafe_forward,
    carafe.carafe_naive_backward,
    carafe.carafe_naive_forward,
    deform_conv.deform_conv_backward_input,
    deform_conv.deform_conv_backward_parameters,
    deform_conv.deform_conv_forward,
    deform_conv.modulated_deform_conv_backward,
    deform_conv.modulated_deform_conv_forward,
    deformable_attention.ms_deform_attn_backward,
    deformable_attention.ms_deform_attn_forward,
    focal_loss.sigmoid_focal_loss_backward,
    focal_loss.sigmoid_focal_loss_forward,
    focal_loss.softmax_focal_loss_backward,
    focal_loss.softmax_focal_loss_forward,
    masked_conv.masked_col2im_forward,
    masked_conv.masked_im2col_forward,
    rois.roi_align_backward,
    rois.roi_align_forward,
    rois.roi_pool_backward,
    rois.roi_pool_forward,
    rotated.box_iou_rotated,
    rotated.nms_rotated,
)}

_ABOUT = dict(
    get_compiling_cuda_version=lambda: 'not available',
    get_compiler_version=lambda: f'none (mmcv_ops {__version__}, PyTorch)')


def operator(name: str) -> Callable:
    """Return the attribute of ``mmcv._ext`` with a name; mmcv checks on import only that it exists.

    Args:
        name (str): One of :data:`OPERATORS`, or another operator of mmcv.

    Returns:
        Callable: The operator; for an unknown name, a function that raises ``NotImplementedError`` when called.

    Raises:
        AttributeError: If the name starts with an underscore: Python looks up such names itself.
    """
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f'mmcv.ops needs the compiled operator {name!r}, which mmcv_ops does not have: install a compiled mmcv 2.1 '
            'for your torch and CUDA (pip install mmcv==2.1.0 builds it; it replaces mmcv-lite)')

    return OPERATORS.get(name) or _ABOUT.get(name) or missing


def complete(ext: ModuleType | None = None, devices: tuple[str, ...] = ('cuda',)) -> list[str]:
    """Add the operators of this package on CUDA to a compiled mmcv that was built for the CPU only.

    Each function of the module in :data:`OPERATORS` is replaced by one that chooses by the device of its tensors.

    Args:
        ext (ModuleType, optional): mmcv's compiled module. Default: ``mmcv._ext``.
        devices (tuple[str, ...]): Device types for which to use this package instead of mmcv.

    Returns:
        list[str]: The replaced operators. It is empty if mmcv was built with CUDA, its ``_ext`` is the one of this
        package, or this function was called before.
    """
    ext = importlib.import_module('mmcv._ext') if ext is None else ext
    if vars(ext).get('__getattr__') is operator or ext.get_compiling_cuda_version() != 'not available':
        return []
    names = [name for name in OPERATORS if hasattr(ext, name) and not hasattr(getattr(ext, name), 'compiled')]
    for name in names:
        setattr(ext, name, _by_device(OPERATORS[name], getattr(ext, name), devices))
    return names


def _by_device(ours: Callable, compiled: Callable, devices: tuple[str, ...]) -> Callable:
    @functools.wraps(ours)
    def run(*args, **kwargs):
        here = any(x.device.type in devices for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        return (ours if here else compiled)(*args, **kwargs)

    run.compiled = compiled
    return run
