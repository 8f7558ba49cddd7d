"""MiniScanNet: synthetic rooms in the layout of scannet_frames_25k.

``geometry`` has meshes and cameras, ``materials`` and ``textures`` have surfaces; ``furniture`` and ``fixtures`` build
meshes from ``parts``; ``rooms`` furnishes and photographs; ``render`` makes pictures; ``writer`` makes the data set;
``walk`` makes videos.
"""

from deit_detr.scannet.mini_scannet.writer import make_mini_scannet

__all__ = ['make_mini_scannet']
