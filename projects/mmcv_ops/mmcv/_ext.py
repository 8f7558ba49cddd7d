"""A stand-in for mmcv's compiled module, see mmcv_ops. Python prefers a compiled ``_ext.*.so`` in this folder."""

from mmcv_ops import operator as __getattr__  # noqa: F401 - PEP 562
