"""The operators that detection needs of mmcv 2.1's compiled module, in PyTorch and torchvision.

``mmcv-lite`` is mmcv without ``mmcv._ext``, the module that ``mmcv.ops`` loads by name. The file ``mmcv/_ext.py`` of
this distribution stands in for it and asks :func:`operator` for every name. The operators are for every device and
every floating type that PyTorch and torchvision know; half and bfloat16 are computed in float32. Where a compiled mmcv
is installed, Python imports that one; :func:`complete` gives it operators on CUDA if it was built without.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

from torch import Tensor

from mmcv_ops import boxes, carafe, deform_conv, deformable_attention, focal_loss, masked_conv, rois, rotated
from mmcv_ops.common import as_operator

__version__ = '0.1.0'

#: Name in ``mmcv._ext`` -> function, with the signature that mmcv 2.1 calls. Tensors that mmcv passes for the results
#: are filled in place.
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
    """What ``mmcv._ext`` has of a name; mmcv checks only that there is something.

    Args:
        name (str): One of :data:`OPERATORS`, or another that mmcv asks for.

    Returns:
        Callable: The operator; for a name that is not there, a function that raises ``NotImplementedError`` when it
        is called.

    Raises:
        AttributeError: If the name begins with an underscore: Python itself asks for those.
    """
    if name.startswith('_'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f'mmcv.ops needs the compiled operator {name!r}, which mmcv_ops does not have: install a compiled mmcv 2.1 '
            'for your torch and CUDA (pip install mmcv==2.1.0 builds it; it replaces mmcv-lite)')

    return OPERATORS.get(name) or _ABOUT.get(name) or missing


def complete(ext: ModuleType | None = None, devices: tuple[str, ...] = ('cuda',)) -> list[str]:
    """Give a compiled mmcv that was built for the CPU only the operators of this package on CUDA.

    Each function of the module that is one of :data:`OPERATORS` is replaced by one that looks where its tensors are.

    Args:
        ext (ModuleType, optional): mmcv's compiled module; ``mmcv._ext`` when left out.
        devices (tuple[str, ...]): Types of device whose tensors go to this package; the others' stay with mmcv.

    Returns:
        list[str]: The operators that were replaced. None where mmcv was built with CUDA, where its ``_ext`` is the one
        of this package, and in a second call.
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
