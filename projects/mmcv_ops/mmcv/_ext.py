"""mmcv's compiled module, in PyTorch: see mmcv_ops. A compiled ``_ext.*.so`` beside this file comes first."""

from mmcv_ops import operator as __getattr__  # noqa: F401 - PEP 562
