"""MiniScanNet: synthetic rooms in the layout of scannet_frames_25k.

``textures`` paints surfaces, ``render`` turns meshes into pictures, ``furniture`` holds the meshes,
``rooms`` furnishes and photographs, ``writer`` makes the data set.
"""

from deit_detr.scannet.mini_scannet.writer import make_mini_scannet

__all__ = ['make_mini_scannet']
