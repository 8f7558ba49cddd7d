"""Furniture: what stands in a room or hangs on its walls, as meshes.

Every builder takes a random generator and returns a :class:`Mesh` in metres: x along the wall, y from the wall (0) into
the room, z up from the floor. What tells a class, its shape and surface, stays; colours, sizes and designs vary.
"""

import numpy as np
from numpy.random import Generator

from deit_detr.scannet.mini_scannet import parts
from deit_detr.scannet.mini_scannet.geometry import Mesh
from deit_detr.scannet.mini_scannet.materials import BLACK, CERAMIC, CHROME, Material, pick, tint


def cabinet(rng: Generator) -> Mesh:
    """Build a sideboard or a wardrobe: a closed body, and door panels with knobs."""
    mesh = Mesh()
    tall = rng.random() < 0.4
    columns = int(rng.integers(2, 4))
    width = columns * rng.uniform(0.42, 0.55)
    depth, height = rng.uniform(0.4, 0.55), rng.uniform(1.8, 2.1) if tall else rng.uniform(0.75, 1.0)
    body = Material.wood(rng) if rng.random() < 0.6 else Material(tint(rng, (0.88, 0.87, 0.83)), gloss=0.2)
    mesh.box((-width / 2 + 0.03, 0, 0), (width / 2 - 0.03, depth - 0.05, 0.08), BLACK)
    mesh.box((-width / 2, 0, 0.08), (width / 2, depth - 0.02, height), body)
    mesh.box((-width / 2 - 0.02, 0, height), (width / 2 + 0.02, depth + 0.02, height + 0.03), body)
    knob = pick(rng, (CHROME, BLACK))
    parts.fronts(mesh, (-width / 2, width / 2), (0.08, height), depth - 0.02, columns, 1, body.brighter(0.92), knob)
    return mesh


def bed(rng: Generator) -> Mesh:
    """Build a headboard at the wall, a mattress, pillows and a bedspread."""
    mesh = Mesh()
    width, length = rng.uniform(1.0, 1.7), rng.uniform(1.95, 2.1)
    frame = Material.wood(rng)
    mesh.box((-width / 2 - 0.04, 0, 0), (width / 2 + 0.04, 0.06, rng.uniform(0.9, 1.15)), frame)
    mesh.box((-width / 2 - 0.02, 0.06, 0.12), (width / 2 + 0.02, length + 0.03, 0.32), frame)
    parts.legs(mesh, width, length, 0.12, 0.07, frame)
    white = Material((0.95, 0.95, 0.94))
    mesh.box((-width / 2, 0.06, 0.32), (width / 2, length, 0.52), white)
    spread = Material((1, 1, 1), 'blanket', 1.1) if rng.random() < 0.7 else Material.cloth(rng)
    fold = rng.uniform(0.6, 0.85)
    mesh.box((-width / 2 - 0.03, fold, 0.24), (width / 2 + 0.03, length + 0.04, 0.56), spread)
    mesh.box((-width / 2 - 0.03, fold - 0.18, 0.3), (width / 2 + 0.03, fold, 0.57), white)
    count = 1 if width < 1.25 else 2
    for i in range(count):
        middle = (i - (count - 1) / 2) * width / 2
        low, high = (middle - 0.27, 0.1, 0.52), (middle + 0.27, 0.48, 0.66)
        pillow = Mesh()
        pillow.box(low, high, white, caps='top')
        for face in pillow.faces:  # narrower at the top
            inwards = (np.add(low, high) / 2 - face.vertices) * (0.25, 0.25, 0) * (face.vertices[:, 2:] > 0.6)
            mesh.faces.append(face._replace(vertices=face.vertices + inwards))
    return mesh


def chair(rng: Generator) -> Mesh:
    """Build a wooden chair with a slatted or a solid back."""
    mesh = Mesh()
    wood = Material.wood(rng)
    seat = wood if rng.random() < 0.5 else Material.cloth(rng)
    width, depth, back = 0.44, 0.44, rng.uniform(0.85, 1.0)
    parts.legs(mesh, width, depth, 0.43, 0.045, wood)
    mesh.box((-width / 2, 0, 0.43), (width / 2, depth, 0.48), seat)
    for x in (-width / 2, width / 2 - 0.045):
        mesh.box((x, 0, 0.48), (x + 0.045, 0.04, back), wood)
    if rng.random() < 0.5:
        for z in (0.6, 0.72, 0.84):
            mesh.box((-width / 2, 0.005, z), (width / 2, 0.03, z + 0.07), wood)
    else:
        mesh.box((-width / 2, 0.005, 0.6), (width / 2, 0.035, back), seat)
    return mesh


def office_chair(rng: Generator) -> Mesh:
    """Build an upholstered swivel chair on a five-armed base."""
    mesh = Mesh()
    cloth = Material.cloth(rng) if rng.random() < 0.6 else Material((0.16, 0.16, 0.18), 'fabric', 0.5)
    for k in range(5):
        spoke = Mesh()
        spoke.box((-0.025, 0, 0.04), (0.025, 0.3, 0.08), BLACK)
        spoke.box((-0.03, 0.26, 0), (0.03, 0.32, 0.05), BLACK)
        mesh.faces += spoke.placed(k * 2 * np.pi / 5, (0, 0.3, 0)).faces
    mesh.cylinder((0, 0.3), (0.06, 0.44), 0.03, CHROME, n=8, caps='')
    mesh.box((-0.25, 0.06, 0.44), (0.25, 0.55, 0.53), cloth)
    mesh.box((-0.03, 0.02, 0.45), (0.03, 0.06, 0.7), BLACK)
    mesh.loft([(-0.23, 0.02, 0.6), (0.23, 0.02, 0.6), (0.23, 0.1, 0.6), (-0.23, 0.1, 0.6)],
              [(-0.21, -0.04, 1.08), (0.21, -0.04, 1.08), (0.21, 0.03, 1.08), (-0.21, 0.03, 1.08)], cloth)
    for x in (-0.29, 0.25):
        mesh.box((x, 0.15, 0.66), (x + 0.04, 0.45, 0.7), BLACK)
        mesh.box((x, 0.25, 0.48), (x + 0.04, 0.3, 0.66), BLACK)
    return mesh


def sofa(rng: Generator) -> Mesh:
    """Build an upholstered base with arms, back and cushions."""
    mesh = Mesh()
    cloth = Material.cloth(rng)
    seats = int(rng.integers(2, 4))
    inner, depth = seats * rng.uniform(0.58, 0.68), rng.uniform(0.85, 0.95)
    arm, back = rng.uniform(0.16, 0.24), rng.uniform(0.78, 0.9)
    half = inner / 2
    mesh.box((-half - arm, 0.02, 0.1), (half + arm, depth, 0.28), cloth)
    for x in (-half - arm, half):
        mesh.box((x, 0.02, 0.28), (x + arm, depth, 0.6), cloth)
    mesh.box((-half - arm, 0, 0.1), (half + arm, 0.2, back - 0.08), cloth)
    parts.legs(mesh, inner + 2 * arm, depth, 0.1, 0.06, BLACK)
    bright = cloth.brighter(1.15)
    for i in range(seats):
        x0, x1 = -half + i * inner / seats + 0.01, -half + (i + 1) * inner / seats - 0.01
        mesh.box((x0, 0.2, 0.28), (x1, depth + 0.03, 0.45), bright)
        mesh.loft([(x0, 0.18, 0.45), (x1, 0.18, 0.45), (x1, 0.38, 0.45), (x0, 0.38, 0.45)],
                  [(x0 + 0.03, 0.1, back), (x1 - 0.03, 0.1, back), (x1 - 0.03, 0.24, back), (x0 + 0.03, 0.24, back)],
                  bright)
    return mesh


def table(rng: Generator, low: bool = False) -> Mesh:
    """Build a top on four legs, or a round top on a column; ``low`` for a coffee table."""
    mesh = Mesh()
    wood = Material.wood(rng)
    height = rng.uniform(0.38, 0.45) if low else rng.uniform(0.72, 0.77)
    if rng.random() < 0.7:
        width, depth = (rng.uniform(0.9, 1.2), 0.6) if low else (rng.uniform(1.1, 1.6), rng.uniform(0.75, 0.9))
        parts.legs(mesh, width - 0.08, depth - 0.08, height, 0.06, wood, 0.04)
        mesh.box((-width / 2 + 0.06, 0.07, height - 0.09), (width / 2 - 0.06, depth - 0.07, height), wood)
        mesh.box((-width / 2, 0, height), (width / 2, depth, height + 0.04), wood)
    else:
        radius = 0.42 if low else rng.uniform(0.5, 0.6)
        mesh.cylinder((0, radius), (0, 0.05), (0.3, 0.22), wood)
        mesh.cylinder((0, radius), (0.05, height), (0.05, 0.05), wood, n=10, caps='')
        mesh.cylinder((0, radius), (height, height + 0.04), radius, wood, n=20)
    return mesh


def desk(rng: Generator) -> Mesh:
    """Build a desk with a chest of drawers under one side and a side panel under the other."""
    mesh = Mesh()
    body = Material.wood(rng) if rng.random() < 0.7 else Material(tint(rng, (0.85, 0.85, 0.84)), gloss=0.2)
    width, depth, height = rng.uniform(1.2, 1.5), rng.uniform(0.6, 0.7), 0.74
    side = pick(rng, (-1, 1))
    chest = sorted((side * width / 2, side * (width / 2 - 0.42)))
    mesh.box((chest[0], 0.02, 0.04), (chest[1], depth - 0.04, height), body)
    parts.fronts(mesh, chest, (0.06, height - 0.02), depth - 0.04, 1, 3, body, pick(rng, (CHROME, BLACK)))
    panel = sorted((-side * width / 2, -side * (width / 2 - 0.04)))
    mesh.box((panel[0], 0.02, 0), (panel[1], depth - 0.04, height), body)
    mesh.box((-width / 2, 0.02, 0.35), (width / 2, 0.05, height), body)
    mesh.box((-width / 2 - 0.02, 0, height), (width / 2 + 0.02, depth, height + 0.035), body)
    return mesh


def bookshelf(rng: Generator) -> Mesh:
    """Build open shelves full of books."""
    mesh = Mesh()
    wood = Material.wood(rng)
    width, depth, shelves = rng.uniform(0.8, 1.2), 0.3, int(rng.integers(3, 6))
    step = rng.uniform(0.33, 0.38)
    height = shelves * step + 0.08
    half = width / 2
    dark = wood.brighter(0.55)
    mesh.box((-half, 0, 0), (half, 0.02, height), dark)
    for x in (-half, half - 0.03):
        mesh.box((x, 0, 0), (x + 0.03, depth, height), wood)
    for k in range(shelves + 1):
        z = 0.05 + k * step
        mesh.box((-half + 0.03, 0.02, z), (half - 0.03, depth - 0.01, z + 0.03), wood)
        if k < shelves:
            x = -half + 0.03
            while x < half - 0.1:
                end = min(half - 0.03, x + rng.uniform(0.3, 0.5))
                if rng.random() < 0.88:
                    top = z + 0.03 + step * rng.uniform(0.68, 0.86)
                    spines = Material((1, 1, 1), f'books:{rng.integers(4)}', None)
                    pages = Material((0.75, 0.7, 0.6))
                    mesh.box((x, 0.03, z + 0.03), (end, depth - rng.uniform(0.04, 0.08), top), pages, front=spines)
                x = end
    return mesh


def computer(rng: Generator, height: float = 0.775) -> Mesh:
    """Build a monitor and a keyboard that stand on a desk ``height`` metres high."""
    mesh = Mesh()
    x = rng.uniform(-0.2, 0.2)
    mesh.cylinder((x, 0.25), (height, height + 0.02), 0.11, BLACK)
    mesh.box((x - 0.025, 0.22, height), (x + 0.025, 0.25, height + 0.25), BLACK)
    bright = Material((1, 1, 1), f'screen:{rng.integers(3)}', None, glow=0.5)
    mesh.box((x - 0.28, 0.25, height + 0.12), (x + 0.28, 0.28, height + 0.47), BLACK)
    mesh.box((x - 0.26, 0.28, height + 0.14), (x + 0.26, 0.281, height + 0.45), bright)
    mesh.box((x - 0.2, 0.4, height), (x + 0.2, 0.53, height + 0.02), pick(rng, (BLACK, CERAMIC)))
    return mesh


def crockery(rng: Generator, height: float, y: float) -> Mesh:
    """Build a bowl or a vase that stands on a table ``height`` metres high, ``y`` metres from its edge."""
    mesh = Mesh()
    color = Material(tint(rng, rng.uniform(0.3, 0.95, 3)), gloss=0.5)
    x = rng.uniform(-0.15, 0.15)
    if rng.random() < 0.5:
        mesh.cylinder((x, y), (height, height + 0.08), (0.06, 0.14), color)
    else:
        mesh.cylinder((x, y), (height, height + 0.14), (0.04, 0.08), color, caps='bottom')
        mesh.cylinder((x, y), (height + 0.14, height + 0.24), (0.08, 0.035), color)
    return mesh


def picture(rng: Generator) -> Mesh:
    """Build a painting in a frame."""
    mesh = Mesh()
    width, height = rng.uniform(0.4, 0.95), rng.uniform(0.4, 0.75)
    low, half = rng.uniform(1.3, 1.5), width / 2
    frame = pick(rng, ((0.15, 0.12, 0.1), (0.7, 0.55, 0.25), (0.5, 0.3, 0.17), (0.92, 0.92, 0.9)))
    frame = Material(tint(rng, frame, 0.03), gloss=0.3)
    edge = rng.uniform(0.03, 0.06)
    canvas = Material((1, 1, 1), f'painting:{rng.integers(6)}', None)
    mesh.box((-half, 0, low), (half, 0.015, low + height), canvas)
    top = low + height
    for x in (-half - edge, half):
        mesh.box((x, 0, low - edge), (x + edge, 0.035, top + edge), frame)
    for z in (low - edge, top):
        mesh.box((-half, 0, z), (half, 0.035, z + edge), frame)
    return mesh


def floor_lamp(rng: Generator) -> Mesh:
    """Build a standard lamp with a bright shade."""
    mesh = Mesh()
    metal = pick(rng, (CHROME, BLACK, Material((0.7, 0.55, 0.25), gloss=0.6)))
    height = rng.uniform(1.35, 1.6)
    mesh.cylinder((0, 0.2), (0, 0.03), 0.15, metal)
    mesh.cylinder((0, 0.2), (0.03, height), 0.016, metal, n=6, caps='')
    shade = Material(tint(rng, (0.96, 0.88, 0.68), 0.05), glow=rng.uniform(0.6, 1.1))
    mesh.cylinder((0, 0.2), (height - 0.05, height + 0.25), (0.2, 0.13), shade, n=16)
    return mesh


def plant(rng: Generator) -> Mesh:
    """Build a potted plant with long leaves."""
    mesh = Mesh()
    pot = Material(tint(rng, pick(rng, ((0.7, 0.38, 0.24), (0.9, 0.88, 0.84), (0.3, 0.33, 0.4)))), gloss=0.2)
    mesh.cylinder((0, 0.25), (0, 0.32), (0.13, 0.18), pot)
    mesh.cylinder((0, 0.25), (0.32, 0.9), 0.015, Material((0.3, 0.4, 0.2)), n=6, caps='')
    green = Material(tint(rng, (0.32, 0.62, 0.25), 0.08), 'leaf', None, gloss=0.1)
    for k in range(int(rng.integers(14, 20))):
        angle, rise = k * 2.4 + rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.6)
        length, half, start = rng.uniform(0.3, 0.45), rng.uniform(0.06, 0.09), rng.uniform(0.45, 0.85)
        # A leaf is two flat pieces, the outer one drooping.
        inner = (length * 0.55 * np.cos(rise), length * 0.55 * np.sin(rise) + 0.05)
        outer = (length * np.cos(rise), inner[1] - 0.1 * length)
        blade = Mesh()
        edge = [(inner[0], -half, inner[1]), (inner[0], half, inner[1])]
        for piece in ([(0, 0, 0), *edge[::-1]], [*edge, (outer[0], 0, outer[1])]):
            blade.face(piece, green, u_axis=(1, 0, 0))
            blade.face(piece[::-1], green, u_axis=(1, 0, 0))
        mesh.faces += blade.placed(angle, (0, 0.25, start)).faces
    return mesh


def ottoman(rng: Generator) -> Mesh:
    """Build a round padded stool."""
    mesh = Mesh()
    cloth = Material.cloth(rng)
    mesh.cylinder((0, 0.28), (0.05, 0.32), 0.26, cloth, n=18, caps='bottom')
    mesh.cylinder((0, 0.28), (0.32, 0.4), (0.27, 0.23), cloth.brighter(1.25), n=18)
    return mesh


def rug(rng: Generator, width: float, depth: float) -> Mesh:
    """Build a flat rug of the given size in metres."""
    mesh = Mesh()
    mesh.box((-width / 2, -depth / 2, 0), (width / 2, depth / 2, 0.008), Material((1, 1, 1), 'rug', None))
    return mesh
