"""Parts that several objects share; each function adds one to a mesh, in metres."""

import numpy as np

from deit_detr.scannet.mini_scannet.geometry import Mesh, Vector
from deit_detr.scannet.mini_scannet.materials import CHROME, Material

Range = tuple[float, float]
Rectangle = tuple[float, float, float, float]  # x0, x1, y0, y1


def legs(
    mesh: Mesh, width: float, depth: float, height: float, thick: float, material: Material, y0: float = 0.0
) -> None:
    """Add four legs, ``thick`` wide, in the corners of a rectangle that begins at ``y0``."""
    for x in (-width / 2, width / 2 - thick):
        for y in (y0, y0 + depth - thick):
            mesh.box((x, y, 0), (x + thick, y + thick, height), material, caps='')


def fronts(
    mesh: Mesh, x: Range, z: Range, y: float, columns: int, rows: int, material: Material, knob: Material
) -> None:
    """Add doors or drawers on the plane ``y``: raised panels with a gap between them, and a knob each."""
    (x0, x1), (z0, z1) = x, z
    width, height = (x1 - x0) / columns, (z1 - z0) / rows
    for i in range(columns):
        for j in range(rows):
            a, b = x0 + i * width + 0.012, x0 + (i + 1) * width - 0.012
            c, d = z0 + j * height + 0.012, z0 + (j + 1) * height - 0.012
            mesh.box((a, y, c), (b, y + 0.02, d), material, back=None)
            if height < 0.3:
                at, level, half = (a + b) / 2, (c + d) / 2, 0.05
            else:
                at = b - 0.05 if i % 2 == 0 and columns > 1 else a + 0.05
                level, half = (d - 0.12 if z0 < 0.6 else c + 0.12), 0.014
            mesh.box((at - half, y + 0.02, level - 0.014), (at + half, y + 0.05, level + 0.014), knob, back=None)


def folds(mesh: Mesh, x: Range, y: float, z: Range, fold: float, depth: float, material: Material) -> None:
    """Add a hanging sheet in folds of the width ``fold`` and the given depth, seen from both sides."""
    count = max(3, round((x[1] - x[0]) / fold))
    x = np.linspace(*x, 2 * count + 1)
    y = y + np.where(np.arange(len(x)) % 2 == 0, -depth / 2, depth / 2)
    for a, b in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=False), strict=False):
        for left, right in ((a, b), (b, a)):
            mesh.face([(*left, z[1]), (*right, z[1]), (*right, z[0]), (*left, z[0])], material, (1, 0, 0))


def ring(mesh: Mesh, outer: Rectangle, inner: Rectangle, z: Range, material: Material) -> None:
    """Add a flat slab with a rectangular hole."""
    (x0, x1, y0, y1), (a0, a1, b0, b1) = outer, inner
    for low, high in (((x0, y0), (a0, y1)), ((a1, y0), (x1, y1)), ((a0, y0), (a1, b0)), ((a0, b1), (a1, y1))):
        if low[0] < high[0] and low[1] < high[1]:
            mesh.box((*low, z[0]), (*high, z[1]), material)


def oval_ring(mesh: Mesh, center: Vector, z: float, outer: Vector, inner: Vector, material: Material) -> None:
    """Add a level oval face with an oval hole; ``outer`` and ``inner`` are radii (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 19)  # 18 sides
    for a, b in zip(angle[:-1], angle[1:], strict=True):
        corners = ((outer, b), (outer, a), (inner, a), (inner, b))
        mesh.face([(center[0] + r[0] * np.cos(t), center[1] + r[1] * np.sin(t), z) for r, t in corners], material)


def oval_bowl(
    mesh: Mesh, center: Vector, z: Range, outer: Vector, inner: Vector, material: Material, floor: Material
) -> None:
    """Add a bowl with a rim; the radii are (bottom x, bottom y, top x, top y) outside and (x, y) of the hole."""
    bottom, top = z
    ix, iy = inner
    mesh.cylinder(center, z, outer, material, n=18, caps='bottom')
    oval_ring(mesh, center, top, outer[2:], inner, material)
    depth = bottom + 0.3 * (top - bottom)
    mesh.cylinder(center, (depth, top), (ix * 0.6, iy * 0.6, ix, iy), material, n=18, inside=True, caps='')
    mesh.cylinder(center, (depth - 0.01, depth), (ix * 0.6, iy * 0.6) * 2, floor, n=18, caps='top')


def faucet(mesh: Mesh, x: float, y: float, z: float, reach: float = 0.18) -> None:
    """Add a faucet with two taps that stands at (x, y, z) and reaches into the room (+y)."""
    mesh.cylinder((x, y), (z, z + 0.22), 0.018, CHROME, n=8)
    mesh.box((x - 0.015, y, z + 0.2), (x + 0.015, y + reach, z + 0.23), CHROME)
    mesh.box((x - 0.015, y + reach - 0.03, z + 0.15), (x + 0.015, y + reach, z + 0.2), CHROME)
    for side in (-0.1, 0.1):
        mesh.cylinder((x + side, y), (z, z + 0.06), 0.022, CHROME, n=8)
