"""Fixtures: doors and windows, and what belongs to a kitchen or a bathroom, as meshes.

The coordinates are those of :mod:`deit_detr.scannet.mini_scannet.furniture`.
"""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from deit_detr.scannet.mini_scannet import parts
from deit_detr.scannet.mini_scannet.geometry import Mesh
from deit_detr.scannet.mini_scannet.materials import BLACK, CERAMIC, CHROME, DRAIN, Material, pick, tint


def door(rng: Generator) -> Mesh:
    """Build a panelled leaf in its frame, with a handle."""
    mesh = Mesh()
    width, height = rng.uniform(0.78, 0.9), rng.uniform(1.98, 2.1)
    leaf = pick(rng, ((0.6, 0.38, 0.2), (0.45, 0.26, 0.14), (0.9, 0.89, 0.86), (0.72, 0.54, 0.34)))
    leaf = Material(tint(rng, leaf, 0.04), f'panels:{rng.integers(9)}', None, gloss=0.15)
    frame = replace(leaf.brighter(1.12), texture='plain')
    half = width / 2
    mesh.box((-half, 0, 0.01), (half, 0.03, height), leaf)
    mesh.box((-half - 0.08, 0, 0), (-half, 0.06, height + 0.08), frame)
    mesh.box((half, 0, 0), (half + 0.08, 0.06, height + 0.08), frame)
    mesh.box((-half, 0, height), (half, 0.06, height + 0.08), frame)
    side = pick(rng, (-1, 1))
    x = sorted((side * (half - 0.05), side * (half - 0.17)))
    metal = pick(rng, (CHROME, Material((0.75, 0.6, 0.25), gloss=0.8)))
    mesh.box((x[0], 0.06, 1.02), (x[1], 0.085, 1.05), metal)
    middle = side * (half - 0.06)
    mesh.box((middle - 0.025, 0.03, 0.93), (middle + 0.025, 0.06, 1.1), metal)
    return mesh


def window(rng: Generator, width: float) -> Mesh:
    """Build a window ``width`` metres wide: panes with a bright view, mullions, frame and sill."""
    mesh = Mesh()
    sill, top = rng.uniform(0.85, 1.0), rng.uniform(1.95, 2.15)
    white, brown = (0.94, 0.94, 0.93), (0.55, 0.38, 0.22)
    frame = Material(tint(rng, pick(rng, (white, white, brown)), 0.03), gloss=0.2)
    pane = Material((1, 1, 1), f'view:{rng.integers(4)}', None, glow=rng.uniform(1.1, 1.8))
    half = width / 2
    mesh.box((-half, 0, sill), (half, 0.015, top), pane)
    bar = 0.055
    uprights = np.linspace(-half, half, 2 + (1 if width < 1.3 else 2))
    for x in uprights:
        mesh.box((x - bar / 2, 0, sill - bar / 2), (x + bar / 2, 0.045, top + bar / 2), frame)
    rails = [sill, top] + ([sill + 0.6 * (top - sill)] if rng.random() < 0.6 else [])
    for z in rails:
        mesh.box((-half - bar / 2, 0, z - bar / 2), (half + bar / 2, 0.05, z + bar / 2), frame)
    mesh.box((-half - 0.1, 0, sill - 0.07), (half + 0.1, 0.14, sill - 0.03), frame)
    return mesh


def curtain(rng: Generator, width: float, cloth: Material) -> Mesh:
    """Build a curtain ``width`` metres wide: cloth of the given colour in folds under a rod."""
    mesh = Mesh()
    folds = Material(cloth.color, 'folds', width * rng.uniform(0.9, 1.3))
    top, bottom = rng.uniform(2.2, 2.32), rng.uniform(0.05, 0.15)
    parts.folds(mesh, (-width / 2, width / 2), 0.09, (bottom, top), 0.13, 0.06, folds)
    rod = Material((0.35, 0.25, 0.18), gloss=0.4)
    mesh.box((-width / 2 - 0.1, 0.075, top), (width / 2 + 0.1, 0.105, top + 0.03), rod)
    return mesh


def kitchen_surfaces(rng: Generator) -> tuple[Material, Material]:
    """Return the materials of the doors and of the worktop of one kitchen."""
    doors = ((0.9, 0.89, 0.86), (0.62, 0.44, 0.28), (0.75, 0.6, 0.42), (0.35, 0.45, 0.5), (0.55, 0.6, 0.5))
    stones = ((0.32, 0.32, 0.34), (0.72, 0.66, 0.58), (0.5, 0.35, 0.28), (0.3, 0.38, 0.34))
    front = Material(tint(rng, pick(rng, doors)), 'wood', 0.8, 0.15)
    return front, Material(tint(rng, pick(rng, stones), 0.04), 'granite', 0.5, gloss=0.5)


def wall_cabinet(rng: Generator, width: float, body: Material) -> Mesh:
    """Build a kitchen cabinet ``width`` metres wide that hangs above a counter."""
    mesh = Mesh()
    mesh.box((-width / 2, 0, 1.45), (width / 2, 0.32, 2.1), body)
    parts.fronts(mesh, (-width / 2, width / 2), (1.45, 2.1), 0.32, max(2, round(width / 0.45)), 1, body, CHROME)
    return mesh


def counter(rng: Generator, width: float, base: Material, stone: Material, hole: parts.Rectangle | None = None) -> Mesh:
    """Build a kitchen worktop on a base of doors, with a splashback, and with a ``hole`` in metres for a sink."""
    mesh = Mesh()
    depth, height, half = 0.62, 0.9, width / 2
    mesh.box((-half, 0, 0), (half, depth - 0.08, 0.1), BLACK)
    mesh.box((-half, 0, 0.1), (half, depth - 0.04, height - 0.04), base, top=None)
    parts.fronts(mesh, (-half, half), (0.1, height - 0.05), depth - 0.04, max(2, round(width / 0.5)), 1, base, CHROME)
    parts.ring(mesh, (-half, half, 0, depth), hole or (half, half, 0, depth), (height - 0.04, height), stone)
    mesh.box((-half, 0, height), (half, 0.02, height + 0.1), stone)
    return mesh


def sink_bowl(rng: Generator, hole: parts.Rectangle, height: float = 0.9) -> Mesh:
    """Build a basin with a faucet for the ``hole`` of a counter; all in metres."""
    mesh = Mesh()
    x0, x1, y0, y1 = hole
    metal = pick(rng, (Material((0.72, 0.74, 0.76), gloss=0.7), CERAMIC))
    mesh.box((x0, y0, height - 0.18), (x1, y1, height), metal, inside=True, caps='', bottom=None)
    mesh.box((x0, y0, height - 0.19), (x1, y1, height - 0.17), DRAIN)
    rim, top = 0.035, height + 0.012
    parts.ring(mesh, (x0 - rim, x1 + rim, y0 - rim, y1 + rim), hole, (height, top), metal)
    parts.faucet(mesh, (x0 + x1) / 2, y0 - 0.02, top)
    return mesh


def refrigerator(rng: Generator) -> Mesh:
    """Build a tall white or steel box with a freezer door above and two long handles."""
    mesh = Mesh()
    width, depth, height = rng.uniform(0.65, 0.8), rng.uniform(0.62, 0.7), rng.uniform(1.65, 1.85)
    color = pick(rng, ((0.93, 0.93, 0.93), (0.93, 0.93, 0.93), (0.62, 0.64, 0.66), (0.2, 0.2, 0.22)))
    skin = Material(tint(rng, color, 0.02), gloss=0.5)
    half = width / 2
    mesh.box((-half, 0.02, 0.04), (half, depth - 0.06, height), skin.brighter(0.8))
    mesh.box((-half + 0.02, 0.02, 0), (half - 0.02, depth - 0.1, 0.04), BLACK)
    split = height * rng.uniform(0.62, 0.7)
    side = pick(rng, (-1, 1))
    handle = CHROME if color[0] < 0.9 else pick(rng, (CHROME, BLACK))
    x = sorted((side * (half - 0.05), side * (half - 0.085)))
    for z, grip in (((0.06, split - 0.01), (split - 0.5, split - 0.06)),
                    ((split + 0.01, height), (split + 0.06, split + 0.34))):
        mesh.box((-half, depth - 0.05, z[0]), (half, depth, z[1]), skin)
        mesh.box((x[0], depth, grip[0]), (x[1], depth + 0.045, grip[1]), handle)
    return mesh


def sink(rng: Generator) -> Mesh:
    """Build a wash basin on a pedestal, with a faucet."""
    mesh = Mesh()
    height, rx, ry = rng.uniform(0.8, 0.86), rng.uniform(0.26, 0.32), rng.uniform(0.21, 0.24)
    y = ry + 0.06
    mesh.cylinder((0, y - 0.03), (0, height - 0.16), (0.11, 0.09, 0.08, 0.07), CERAMIC, caps='')
    parts.oval_bowl(mesh, (0, y), (height - 0.18, height), (0.13, 0.11, rx, ry), (rx - 0.05, ry - 0.05), CERAMIC, DRAIN)
    mesh.box((-rx * 0.8, 0, height - 0.14), (rx * 0.8, 0.1, height + 0.01), CERAMIC)
    parts.faucet(mesh, 0, 0.06, height + 0.01, 0.15)
    return mesh


def toilet(rng: Generator) -> Mesh:
    """Build a cistern, an oval bowl, a seat, and a lid that leans on the cistern or is closed."""
    mesh = Mesh()
    y, seat = 0.46, 0.4
    mesh.box((-0.2, 0.0, 0.38), (0.2, 0.19, 0.76), CERAMIC)
    mesh.box((-0.215, 0.0, 0.76), (0.215, 0.205, 0.8), CERAMIC)
    mesh.cylinder((0, 0.1), (0.8, 0.815), 0.03, CHROME, n=8)
    mesh.box((-0.11, 0.02, 0), (0.11, 0.3, 0.38), CERAMIC)
    mesh.cylinder((0, y - 0.08), (0, 0.16), (0.13, 0.2, 0.11, 0.17), CERAMIC, caps='')
    parts.oval_bowl(mesh, (0, y), (0.14, seat), (0.11, 0.17, 0.185, 0.25), (0.11, 0.16), CERAMIC, DRAIN)
    plastic = pick(rng, (CERAMIC, CERAMIC, Material((0.5, 0.32, 0.18), 'wood', 0.5, 0.3)))
    if rng.random() < 0.6:
        lid = Mesh()
        lid.cylinder((0, 0), (0, 0.025), (0.18, 0.22) * 2, plastic, n=18)
        tilt = np.radians(100)
        turn = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
        for face in lid.faces:
            mesh.faces.append(face._replace(vertices=face.vertices @ turn + (0, 0.25, seat + 0.23), u_axis=None))
        parts.oval_ring(mesh, (0, y), seat + 0.02, (0.19, 0.255), (0.11, 0.16), plastic)
        mesh.cylinder((0, y), (seat, seat + 0.02), (0.19, 0.255) * 2, plastic, n=18, caps='')
    else:
        mesh.cylinder((0, y), (seat, seat + 0.045), (0.19, 0.255, 0.18, 0.245), plastic, n=18)
    return mesh


def bathtub(rng: Generator, width: float) -> Mesh:
    """Build a white tub ``width`` metres long with a wide rim."""
    mesh = Mesh()
    depth, height, half, rim = rng.uniform(0.72, 0.8), rng.uniform(0.52, 0.58), width / 2, 0.07
    apron = CERAMIC if rng.random() < 0.6 else Material(tint(rng, (0.75, 0.82, 0.86)), 'tiles', 0.6, 0.4)
    mesh.box((-half, 0, 0), (half, depth, height - 0.04), apron, top=None)
    x, y = half - rim, depth - rim
    parts.ring(mesh, (-half, half, 0, depth), (-x, x, rim, y), (height - 0.04, height), CERAMIC)
    floor = [(-x + 0.2, rim + 0.08), (x - 0.08, rim + 0.08), (x - 0.08, y - 0.08), (-x + 0.2, y - 0.08)]
    edge = [(-x, rim), (x, rim), (x, y), (-x, y)]
    floor, edge = [(*p, 0.14) for p in floor], [(*p, height - 0.01) for p in edge]
    mesh.loft(floor, edge, CERAMIC, inside=True, caps='')
    mesh.box((-x, rim, 0.12), (x, y, 0.14), Material((0.86, 0.89, 0.9), gloss=0.4))
    mesh.box((half - 0.07, depth / 2 - 0.02, height), (half - 0.03, depth / 2 + 0.02, height + 0.12), CHROME)
    mesh.box((half - 0.2, depth / 2 - 0.02, height + 0.09), (half - 0.03, depth / 2 + 0.02, height + 0.12), CHROME)
    return mesh


def shower_curtain(rng: Generator, length: float, x0: float, x1: float) -> Mesh:
    """Build a printed sheet from ``x0`` to ``x1`` in the plane y = 0, under a rod of a tub's ``length``; in metres."""
    mesh = Mesh()
    top = 1.98
    sheet = Material(tint(rng, (0.95, 0.95, 0.94), 0.05), 'shower', 0.8)
    parts.folds(mesh, (x0, x1), 0, (0.28, top), 0.12, 0.04, sheet)
    mesh.box((-length / 2, -0.012, top + 0.02), (length / 2, 0.012, top + 0.045), CHROME)
    for x in np.arange(x0, x1, 0.12):
        mesh.box((x - 0.008, -0.016, top - 0.01), (x + 0.008, 0.016, top + 0.05), CHROME)
    return mesh


def mirror(rng: Generator) -> Mesh:
    """Build a bathroom mirror that hangs above a basin."""
    mesh = Mesh()
    half = rng.uniform(0.22, 0.32)
    mesh.box((-half, 0, 1.15), (half, 0.02, 1.85), CHROME)
    mesh.box((-half + 0.02, 0, 1.17), (half - 0.02, 0.021, 1.83), Material((0.66, 0.74, 0.78), gloss=0.9))
    return mesh
