"""Furniture of the 20 ScanNet classes as meshes.

Every builder takes a random generator and returns a :class:`Mesh` in metres: x along the wall, y from the
wall (0) into the room, z up from the floor. What tells a class, its shape and surface, stays; colours, sizes
and designs vary.
"""

from dataclasses import replace

import numpy as np

from deit_detr.scannet.mini_scannet.render import Material, Mesh

CHROME = Material((0.78, 0.8, 0.82), gloss=0.9)
BLACK = Material((0.12, 0.12, 0.13), gloss=0.3)
CERAMIC = Material((0.96, 0.96, 0.95), gloss=0.6)
DRAIN = Material((0.45, 0.52, 0.56), gloss=0.5)
WOODS = ((0.62, 0.42, 0.25), (0.48, 0.29, 0.16), (0.78, 0.6, 0.4), (0.36, 0.23, 0.15), (0.85, 0.72, 0.52))
CLOTHS = (
    (0.7, 0.2, 0.18),
    (0.2, 0.3, 0.6),
    (0.25, 0.45, 0.35),
    (0.5, 0.42, 0.35),
    (0.4, 0.4, 0.43),
    (0.75, 0.6, 0.3),
    (0.45, 0.25, 0.42),
)


def pick(rng, options):
    """One of ``options``."""
    return options[int(rng.integers(len(options)))]


def tint(rng, color, spread=0.06):
    """``color`` moved a little, within 0..1."""
    return tuple(np.clip(np.asarray(color) + rng.uniform(-spread, spread, 3), 0.03, 1))


def _wood(rng, scale=0.7):
    return Material(tint(rng, pick(rng, WOODS), 0.05), 'wood', scale, gloss=0.12)


def cloth_material(rng):
    """Upholstery or curtain of a random colour."""
    return Material(tint(rng, pick(rng, CLOTHS), 0.1), 'fabric', 0.5)


def _brighter(material, factor):
    return replace(material, color=tuple(min(1.0, factor * c) for c in material.color))


def _legs(mesh, width, depth, height, thick, material, y0=0.0):
    for x in (-width / 2, width / 2 - thick):
        for y in (y0, y0 + depth - thick):
            mesh.box((x, y, 0), (x + thick, y + thick, height), material, caps='')


def _fronts(mesh, rng, x0, x1, z0, z1, y, columns, rows, material, knob):
    """Doors or drawers: raised panels with a gap between them, and a knob each."""
    width, height = (x1 - x0) / columns, (z1 - z0) / rows
    for i in range(columns):
        for j in range(rows):
            a, b = x0 + i * width + 0.012, x0 + (i + 1) * width - 0.012
            c, d = z0 + j * height + 0.012, z0 + (j + 1) * height - 0.012
            mesh.box((a, y, c), (b, y + 0.02, d), material, back=None)
            if height < 0.3:
                x, z, half = (a + b) / 2, (c + d) / 2, 0.05
            else:
                x = b - 0.05 if i % 2 == 0 and columns > 1 else a + 0.05
                z, half = (d - 0.12 if z0 < 0.6 else c + 0.12), 0.014
            mesh.box((x - half, y + 0.02, z - 0.014), (x + half, y + 0.05, z + 0.014), knob, back=None)


def _ring(mesh, outer, inner, z, material):
    """A flat slab between heights ``z`` with a hole; ``outer`` and ``inner`` are (x0, x1, y0, y1)."""
    (x0, x1, y0, y1), (a0, a1, b0, b1) = outer, inner
    for low, high in (((x0, y0), (a0, y1)), ((a1, y0), (x1, y1)), ((a0, y0), (a1, b0)), ((a0, b1), (a1, y1))):
        if low[0] < high[0] and low[1] < high[1]:
            mesh.box((*low, z[0]), (*high, z[1]), material)


def _oval_ring(mesh, center, z, outer, inner, material, n=18):
    """A level oval face with an oval hole; ``outer`` and ``inner`` are radii (x, y)."""
    angle = np.linspace(0, 2 * np.pi, n + 1)
    for a, b in zip(angle[:-1], angle[1:], strict=True):
        corners = ((outer, b), (outer, a), (inner, a), (inner, b))
        mesh.face([(center[0] + r[0] * np.cos(t), center[1] + r[1] * np.sin(t), z) for r, t in corners], material)


def _hang(mesh, x0, x1, y, z, fold, depth, material):
    """A sheet in folds of the width ``fold``, seen from both sides, from height ``z[0]`` to ``z[1]``."""
    count = max(3, round((x1 - x0) / fold))
    x = np.linspace(x0, x1, 2 * count + 1)
    y = y + np.where(np.arange(len(x)) % 2 == 0, -depth / 2, depth / 2)
    for a, b in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=False), strict=False):
        for left, right in ((a, b), (b, a)):
            mesh.face([(*left, z[1]), (*right, z[1]), (*right, z[0]), (*left, z[0])], material, (1, 0, 0))


def cabinet(rng):
    """Sideboard or wardrobe: closed body, door panels with knobs."""
    mesh = Mesh()
    tall = rng.random() < 0.4
    columns = int(rng.integers(2, 4))
    width = columns * rng.uniform(0.42, 0.55)
    depth, height = rng.uniform(0.4, 0.55), rng.uniform(1.8, 2.1) if tall else rng.uniform(0.75, 1.0)
    body = _wood(rng) if rng.random() < 0.6 else Material(tint(rng, (0.88, 0.87, 0.83)), gloss=0.2)
    front = _brighter(body, 0.92)
    mesh.box((-width / 2 + 0.03, 0, 0), (width / 2 - 0.03, depth - 0.05, 0.08), BLACK)
    mesh.box((-width / 2, 0, 0.08), (width / 2, depth - 0.02, height), body)
    mesh.box((-width / 2 - 0.02, 0, height), (width / 2 + 0.02, depth + 0.02, height + 0.03), body)
    _fronts(mesh, rng, -width / 2, width / 2, 0.08, height, depth - 0.02, columns, 1, front, pick(rng, (CHROME, BLACK)))
    return mesh


def wall_cabinet(rng, width, body):
    """Kitchen cabinet that hangs above a counter."""
    mesh = Mesh()
    mesh.box((-width / 2, 0, 1.45), (width / 2, 0.32, 2.1), body)
    _fronts(mesh, rng, -width / 2, width / 2, 1.45, 2.1, 0.32, max(2, round(width / 0.45)), 1, body, CHROME)
    return mesh


def bed(rng):
    """Headboard at the wall, mattress, pillows and a bedspread."""
    mesh = Mesh()
    width, length = rng.uniform(1.0, 1.7), rng.uniform(1.95, 2.1)
    frame = _wood(rng)
    mesh.box((-width / 2 - 0.04, 0, 0), (width / 2 + 0.04, 0.06, rng.uniform(0.9, 1.15)), frame)
    mesh.box((-width / 2 - 0.02, 0.06, 0.12), (width / 2 + 0.02, length + 0.03, 0.32), frame)
    _legs(mesh, width, length, 0.12, 0.07, frame)
    white = Material((0.95, 0.95, 0.94))
    mesh.box((-width / 2, 0.06, 0.32), (width / 2, length, 0.52), white)
    spread = Material((1, 1, 1), 'blanket', 1.1) if rng.random() < 0.7 else cloth_material(rng)
    fold = rng.uniform(0.6, 0.85)
    mesh.box((-width / 2 - 0.03, fold, 0.24), (width / 2 + 0.03, length + 0.04, 0.56), spread)
    mesh.box((-width / 2 - 0.03, fold - 0.18, 0.3), (width / 2 + 0.03, fold, 0.57), white)
    count = 1 if width < 1.25 else 2
    for i in range(count):
        middle = (i - (count - 1) / 2) * width / 2
        low, high = (middle - 0.27, 0.1, 0.52), (middle + 0.27, 0.48, 0.66)
        pillow = Mesh()
        pillow.box(low, high, white, caps='top')
        for vertices, *look in pillow.faces:
            upper = vertices[:, 2:] > 0.6
            drawn_in = vertices + (np.add(low, high) / 2 - vertices) * (0.25, 0.25, 0) * upper
            mesh.faces.append((drawn_in, *look))
    return mesh


def chair(rng):
    """Wooden chair with a slatted or a solid back."""
    mesh = Mesh()
    wood = _wood(rng)
    seat = wood if rng.random() < 0.5 else cloth_material(rng)
    width, depth, back = 0.44, 0.44, rng.uniform(0.85, 1.0)
    _legs(mesh, width, depth, 0.43, 0.045, wood)
    mesh.box((-width / 2, 0, 0.43), (width / 2, depth, 0.48), seat)
    for x in (-width / 2, width / 2 - 0.045):
        mesh.box((x, 0, 0.48), (x + 0.045, 0.04, back), wood)
    if rng.random() < 0.5:
        for z in (0.6, 0.72, 0.84):
            mesh.box((-width / 2, 0.005, z), (width / 2, 0.03, z + 0.07), wood)
    else:
        mesh.box((-width / 2, 0.005, 0.6), (width / 2, 0.035, back), seat)
    return mesh


def office_chair(rng):
    """Upholstered swivel chair on a five-armed base."""
    mesh = Mesh()
    cloth = cloth_material(rng) if rng.random() < 0.6 else Material((0.16, 0.16, 0.18), 'fabric', 0.5)
    for k in range(5):
        spoke = Mesh()
        spoke.box((-0.025, 0, 0.04), (0.025, 0.3, 0.08), BLACK)
        spoke.box((-0.03, 0.26, 0), (0.03, 0.32, 0.05), BLACK)
        mesh.faces += spoke.placed(k * 2 * np.pi / 5, (0, 0.3, 0)).faces
    mesh.cylinder((0, 0.3), (0.06, 0.44), 0.03, CHROME, n=8, caps='')
    mesh.box((-0.25, 0.06, 0.44), (0.25, 0.55, 0.53), cloth)
    mesh.box((-0.03, 0.02, 0.45), (0.03, 0.06, 0.7), BLACK)
    mesh.loft(
        [(-0.23, 0.02, 0.6), (0.23, 0.02, 0.6), (0.23, 0.1, 0.6), (-0.23, 0.1, 0.6)],
        [(-0.21, -0.04, 1.08), (0.21, -0.04, 1.08), (0.21, 0.03, 1.08), (-0.21, 0.03, 1.08)],
        cloth,
    )
    for x in (-0.29, 0.25):
        mesh.box((x, 0.15, 0.66), (x + 0.04, 0.45, 0.7), BLACK)
        mesh.box((x, 0.25, 0.48), (x + 0.04, 0.3, 0.66), BLACK)
    return mesh


def sofa(rng):
    """Upholstered base with arms, back and cushions."""
    mesh = Mesh()
    cloth = cloth_material(rng)
    seats = int(rng.integers(2, 4))
    inner, depth = seats * rng.uniform(0.58, 0.68), rng.uniform(0.85, 0.95)
    arm, back = rng.uniform(0.16, 0.24), rng.uniform(0.78, 0.9)
    half = inner / 2
    mesh.box((-half - arm, 0.02, 0.1), (half + arm, depth, 0.28), cloth)
    for x in (-half - arm, half):
        mesh.box((x, 0.02, 0.28), (x + arm, depth, 0.6), cloth)
    mesh.box((-half - arm, 0, 0.1), (half + arm, 0.2, back - 0.08), cloth)
    _legs(mesh, inner + 2 * arm, depth, 0.1, 0.06, BLACK)
    bright = _brighter(cloth, 1.15)
    for i in range(seats):
        x0, x1 = -half + i * inner / seats + 0.01, -half + (i + 1) * inner / seats - 0.01
        mesh.box((x0, 0.2, 0.28), (x1, depth + 0.03, 0.45), bright)
        mesh.loft([(x0, 0.18, 0.45), (x1, 0.18, 0.45), (x1, 0.38, 0.45), (x0, 0.38, 0.45)],
                  [(x0 + 0.03, 0.1, back), (x1 - 0.03, 0.1, back), (x1 - 0.03, 0.24, back), (x0 + 0.03, 0.24, back)],
                  bright)  # fmt: skip
    return mesh


def table(rng, low=False):
    """Four legs and a top, or a round top on a column; ``low`` for a coffee table."""
    mesh = Mesh()
    wood = _wood(rng)
    height = rng.uniform(0.38, 0.45) if low else rng.uniform(0.72, 0.77)
    if rng.random() < 0.7:
        width, depth = (rng.uniform(0.9, 1.2), 0.6) if low else (rng.uniform(1.1, 1.6), rng.uniform(0.75, 0.9))
        _legs(mesh, width - 0.08, depth - 0.08, height, 0.06, wood, 0.04)
        mesh.box((-width / 2 + 0.06, 0.07, height - 0.09), (width / 2 - 0.06, depth - 0.07, height), wood)
        mesh.box((-width / 2, 0, height), (width / 2, depth, height + 0.04), wood)
    else:
        radius = 0.42 if low else rng.uniform(0.5, 0.6)
        mesh.cylinder((0, radius), (0, 0.05), (0.3, 0.22), wood)
        mesh.cylinder((0, radius), (0.05, height), (0.05, 0.05), wood, n=10, caps='')
        mesh.cylinder((0, radius), (height, height + 0.04), radius, wood, n=20)
    return mesh


def desk(rng):
    """Work table with a chest of drawers under one side and a side panel under the other."""
    mesh = Mesh()
    body = _wood(rng) if rng.random() < 0.7 else Material(tint(rng, (0.85, 0.85, 0.84)), gloss=0.2)
    width, depth, height = rng.uniform(1.2, 1.5), rng.uniform(0.6, 0.7), 0.74
    side = pick(rng, (-1, 1))
    chest = sorted((side * width / 2, side * (width / 2 - 0.42)))
    mesh.box((chest[0], 0.02, 0.04), (chest[1], depth - 0.04, height), body)
    _fronts(mesh, rng, *chest, 0.06, height - 0.02, depth - 0.04, 1, 3, body, pick(rng, (CHROME, BLACK)))
    panel = sorted((-side * width / 2, -side * (width / 2 - 0.04)))
    mesh.box((panel[0], 0.02, 0), (panel[1], depth - 0.04, height), body)
    mesh.box((-width / 2, 0.02, 0.35), (width / 2, 0.05, height), body)
    mesh.box((-width / 2 - 0.02, 0, height), (width / 2 + 0.02, depth, height + 0.035), body)
    return mesh


def computer(rng, height=0.775):
    """Monitor and keyboard to stand on a desk."""
    mesh = Mesh()
    x = rng.uniform(-0.2, 0.2)
    mesh.cylinder((x, 0.25), (height, height + 0.02), 0.11, BLACK)
    mesh.box((x - 0.025, 0.22, height), (x + 0.025, 0.25, height + 0.25), BLACK)
    bright = Material((1, 1, 1), f'screen:{rng.integers(3)}', None, glow=0.5)
    mesh.box((x - 0.28, 0.25, height + 0.12), (x + 0.28, 0.28, height + 0.47), BLACK)
    mesh.box((x - 0.26, 0.28, height + 0.14), (x + 0.26, 0.281, height + 0.45), bright)
    mesh.box((x - 0.2, 0.4, height), (x + 0.2, 0.53, height + 0.02), pick(rng, (BLACK, CERAMIC)))
    return mesh


def crockery(rng, height, y):
    """A bowl or vase to stand on a table."""
    mesh = Mesh()
    color = Material(tint(rng, rng.uniform(0.3, 0.95, 3)), gloss=0.5)
    x = rng.uniform(-0.15, 0.15)
    if rng.random() < 0.5:
        mesh.cylinder((x, y), (height, height + 0.08), (0.06, 0.14), color)
    else:
        mesh.cylinder((x, y), (height, height + 0.14), (0.04, 0.08), color, caps='bottom')
        mesh.cylinder((x, y), (height + 0.14, height + 0.24), (0.08, 0.035), color)
    return mesh


def door(rng):
    """A panelled leaf in its frame, with a handle."""
    mesh = Mesh()
    width, height = rng.uniform(0.78, 0.9), rng.uniform(1.98, 2.1)
    leaf = pick(rng, ((0.6, 0.38, 0.2), (0.45, 0.26, 0.14), (0.9, 0.89, 0.86), (0.72, 0.54, 0.34)))
    leaf = Material(tint(rng, leaf, 0.04), f'panels:{rng.integers(9)}', None, gloss=0.15)
    frame = replace(_brighter(leaf, 1.12), texture='plain')
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


def window(rng, width):
    """Panes with a bright view, mullions, frame and sill."""
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


def curtain(rng, width, cloth):
    """Coloured cloth in folds under a rod."""
    mesh = Mesh()
    folds = Material(cloth.color, 'folds', width * rng.uniform(0.9, 1.3))
    top, bottom = rng.uniform(2.2, 2.32), rng.uniform(0.05, 0.15)
    _hang(mesh, -width / 2, width / 2, 0.09, (bottom, top), 0.13, 0.06, folds)
    rod = Material((0.35, 0.25, 0.18), gloss=0.4)
    mesh.box((-width / 2 - 0.1, 0.075, top), (width / 2 + 0.1, 0.105, top + 0.03), rod)
    return mesh


def bookshelf(rng):
    """Open shelves full of books."""
    mesh = Mesh()
    wood = _wood(rng)
    width, depth, shelves = rng.uniform(0.8, 1.2), 0.3, int(rng.integers(3, 6))
    step = rng.uniform(0.33, 0.38)
    height = shelves * step + 0.08
    half = width / 2
    dark = _brighter(wood, 0.55)
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


def picture(rng):
    """A painting in a frame."""
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


def kitchen_surfaces(rng):
    """Materials of the doors and of the worktop of one kitchen."""
    doors = ((0.9, 0.89, 0.86), (0.62, 0.44, 0.28), (0.75, 0.6, 0.42), (0.35, 0.45, 0.5), (0.55, 0.6, 0.5))
    stones = ((0.32, 0.32, 0.34), (0.72, 0.66, 0.58), (0.5, 0.35, 0.28), (0.3, 0.38, 0.34))
    return (
        Material(tint(rng, pick(rng, doors)), 'wood', 0.8, 0.15),
        Material(tint(rng, pick(rng, stones), 0.04), 'granite', 0.5, gloss=0.5),
    )


def counter(rng, width, base, stone, hole=None):
    """Kitchen worktop on a base of doors, with a tiled splashback; ``hole`` (x0, x1, y0, y1) for a sink."""
    mesh = Mesh()
    depth, height, half = 0.62, 0.9, width / 2
    mesh.box((-half, 0, 0), (half, depth - 0.08, 0.1), BLACK)
    mesh.box((-half, 0, 0.1), (half, depth - 0.04, height - 0.04), base, top=None)
    _fronts(mesh, rng, -half, half, 0.1, height - 0.05, depth - 0.04, max(2, round(width / 0.5)), 1, base, CHROME)
    _ring(mesh, (-half, half, 0, depth), hole or (half, half, 0, depth), (height - 0.04, height), stone)
    mesh.box((-half, 0, height), (half, 0.02, height + 0.1), stone)
    return mesh


def _faucet(mesh, x, y, z, reach=0.18):
    mesh.cylinder((x, y), (z, z + 0.22), 0.018, CHROME, n=8)
    mesh.box((x - 0.015, y, z + 0.2), (x + 0.015, y + reach, z + 0.23), CHROME)
    mesh.box((x - 0.015, y + reach - 0.03, z + 0.15), (x + 0.015, y + reach, z + 0.2), CHROME)
    for side in (-0.1, 0.1):
        mesh.cylinder((x + side, y), (z, z + 0.06), 0.022, CHROME, n=8)


def sink_bowl(rng, hole, height=0.9):
    """Basin let into the ``hole`` (x0, x1, y0, y1) of a counter, with a faucet."""
    mesh = Mesh()
    x0, x1, y0, y1 = hole
    metal = pick(rng, (Material((0.72, 0.74, 0.76), gloss=0.7), CERAMIC))
    mesh.box((x0, y0, height - 0.18), (x1, y1, height), metal, inside=True, caps='', bottom=None)
    mesh.box((x0, y0, height - 0.19), (x1, y1, height - 0.17), DRAIN)
    rim, top = 0.035, height + 0.012
    _ring(mesh, (x0 - rim, x1 + rim, y0 - rim, y1 + rim), hole, (height, top), metal)
    _faucet(mesh, (x0 + x1) / 2, y0 - 0.02, top)
    return mesh


def _oval_bowl(mesh, center, z, outer, inner, material, floor, n=18):
    """A round vessel: outside, rim, inside and the floor inside."""
    bottom, top = z
    (bx, by, tx, ty), (ix, iy) = outer, inner
    mesh.cylinder(center, z, (bx, by, tx, ty), material, n=n, caps='bottom')
    _oval_ring(mesh, center, top, (tx, ty), inner, material, n)
    depth = bottom + 0.3 * (top - bottom)
    mesh.cylinder(center, (depth, top), (ix * 0.6, iy * 0.6, ix, iy), material, n=n, inside=True, caps='')
    mesh.cylinder(center, (depth - 0.01, depth), (ix * 0.6, iy * 0.6) * 2, floor, n=n, caps='top')


def sink(rng):
    """Wash basin on a pedestal, with a faucet."""
    mesh = Mesh()
    height, rx, ry = rng.uniform(0.8, 0.86), rng.uniform(0.26, 0.32), rng.uniform(0.21, 0.24)
    y = ry + 0.06
    mesh.cylinder((0, y - 0.03), (0, height - 0.16), (0.11, 0.09, 0.08, 0.07), CERAMIC, caps='')
    _oval_bowl(mesh, (0, y), (height - 0.18, height), (0.13, 0.11, rx, ry), (rx - 0.05, ry - 0.05), CERAMIC, DRAIN)
    mesh.box((-rx * 0.8, 0, height - 0.14), (rx * 0.8, 0.1, height + 0.01), CERAMIC)
    _faucet(mesh, 0, 0.06, height + 0.01, 0.15)
    return mesh


def toilet(rng):
    """Cistern, oval bowl, seat, and the lid leaning on the cistern or closed."""
    mesh = Mesh()
    y, seat = 0.46, 0.4
    mesh.box((-0.2, 0.0, 0.38), (0.2, 0.19, 0.76), CERAMIC)
    mesh.box((-0.215, 0.0, 0.76), (0.215, 0.205, 0.8), CERAMIC)
    mesh.cylinder((0, 0.1), (0.8, 0.815), 0.03, CHROME, n=8)
    mesh.box((-0.11, 0.02, 0), (0.11, 0.3, 0.38), CERAMIC)
    mesh.cylinder((0, y - 0.08), (0, 0.16), (0.13, 0.2, 0.11, 0.17), CERAMIC, caps='')
    _oval_bowl(mesh, (0, y), (0.14, seat), (0.11, 0.17, 0.185, 0.25), (0.11, 0.16), CERAMIC, DRAIN)
    plastic = pick(rng, (CERAMIC, CERAMIC, Material((0.5, 0.32, 0.18), 'wood', 0.5, 0.3)))
    if rng.random() < 0.6:
        lid = Mesh()
        lid.cylinder((0, 0), (0, 0.025), (0.18, 0.22) * 2, plastic, n=18)
        tilt = np.radians(100)
        turn = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
        for vertices, material, _, bend in lid.faces:
            mesh.faces.append((vertices @ turn + (0, 0.25, seat + 0.23), material, None, bend))
        _oval_ring(mesh, (0, y), seat + 0.02, (0.19, 0.255), (0.11, 0.16), plastic)
        mesh.cylinder((0, y), (seat, seat + 0.02), (0.19, 0.255) * 2, plastic, n=18, caps='')
    else:
        mesh.cylinder((0, y), (seat, seat + 0.045), (0.19, 0.255, 0.18, 0.245), plastic, n=18)
    return mesh


def bathtub(rng, width):
    """A long white tub with a wide rim."""
    mesh = Mesh()
    depth, height, half, rim = rng.uniform(0.72, 0.8), rng.uniform(0.52, 0.58), width / 2, 0.07
    apron = CERAMIC if rng.random() < 0.6 else Material(tint(rng, (0.75, 0.82, 0.86)), 'tiles', 0.6, 0.4)
    mesh.box((-half, 0, 0), (half, depth, height - 0.04), apron, top=None)
    x, y = half - rim, depth - rim
    _ring(mesh, (-half, half, 0, depth), (-x, x, rim, y), (height - 0.04, height), CERAMIC)
    floor = [(-x + 0.2, rim + 0.08), (x - 0.08, rim + 0.08), (x - 0.08, y - 0.08), (-x + 0.2, y - 0.08)]
    edge = [(-x, rim), (x, rim), (x, y), (-x, y)]
    floor, edge = [(*p, 0.14) for p in floor], [(*p, height - 0.01) for p in edge]
    mesh.loft(floor, edge, CERAMIC, inside=True, caps='')
    mesh.box((-x, rim, 0.12), (x, y, 0.14), Material((0.86, 0.89, 0.9), gloss=0.4))
    mesh.box((half - 0.07, depth / 2 - 0.02, height), (half - 0.03, depth / 2 + 0.02, height + 0.12), CHROME)
    mesh.box((half - 0.2, depth / 2 - 0.02, height + 0.09), (half - 0.03, depth / 2 + 0.02, height + 0.12), CHROME)
    return mesh


def shower_curtain(rng, length, x0, x1):
    """A printed sheet from ``x0`` to ``x1`` under a rod of a tub's ``length``; y = 0 is the sheet's plane."""
    mesh = Mesh()
    top = 1.98
    sheet = Material(tint(rng, (0.95, 0.95, 0.94), 0.05), 'shower', 0.8)
    _hang(mesh, x0, x1, 0, (0.28, top), 0.12, 0.04, sheet)
    mesh.box((-length / 2, -0.012, top + 0.02), (length / 2, 0.012, top + 0.045), CHROME)
    for x in np.arange(x0, x1, 0.12):
        mesh.box((x - 0.008, -0.016, top - 0.01), (x + 0.008, 0.016, top + 0.05), CHROME)
    return mesh


def refrigerator(rng):
    """Tall white or steel box with a freezer door above and two long handles."""
    mesh = Mesh()
    width, depth, height = rng.uniform(0.65, 0.8), rng.uniform(0.62, 0.7), rng.uniform(1.65, 1.85)
    color = pick(rng, ((0.93, 0.93, 0.93), (0.93, 0.93, 0.93), (0.62, 0.64, 0.66), (0.2, 0.2, 0.22)))
    skin = Material(tint(rng, color, 0.02), gloss=0.5)
    half = width / 2
    mesh.box((-half, 0.02, 0.04), (half, depth - 0.06, height), _brighter(skin, 0.8))
    mesh.box((-half + 0.02, 0.02, 0), (half - 0.02, depth - 0.1, 0.04), BLACK)
    split = height * rng.uniform(0.62, 0.7)
    side = pick(rng, (-1, 1))
    handle = CHROME if color[0] < 0.9 else pick(rng, (CHROME, BLACK))
    x = sorted((side * (half - 0.05), side * (half - 0.085)))
    for z, grip in (
        ((0.06, split - 0.01), (split - 0.5, split - 0.06)),
        ((split + 0.01, height), (split + 0.06, split + 0.34)),
    ):
        mesh.box((-half, depth - 0.05, z[0]), (half, depth, z[1]), skin)
        mesh.box((x[0], depth, grip[0]), (x[1], depth + 0.045, grip[1]), handle)
    return mesh


def floor_lamp(rng):
    """Standard lamp with a bright shade."""
    mesh = Mesh()
    metal = pick(rng, (CHROME, BLACK, Material((0.7, 0.55, 0.25), gloss=0.6)))
    height = rng.uniform(1.35, 1.6)
    mesh.cylinder((0, 0.2), (0, 0.03), 0.15, metal)
    mesh.cylinder((0, 0.2), (0.03, height), 0.016, metal, n=6, caps='')
    shade = Material(tint(rng, (0.96, 0.88, 0.68), 0.05), glow=rng.uniform(0.6, 1.1))
    mesh.cylinder((0, 0.2), (height - 0.05, height + 0.25), (0.2, 0.13), shade, n=16)
    return mesh


def plant(rng):
    """Potted plant with long leaves."""
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
        for piece in (
            [(0, 0, 0), (inner[0], half, inner[1]), (inner[0], -half, inner[1])],
            [(inner[0], -half, inner[1]), (inner[0], half, inner[1]), (outer[0], 0, outer[1])],
        ):
            blade.face(piece, green, u_axis=(1, 0, 0))
            blade.face(piece[::-1], green, u_axis=(1, 0, 0))
        mesh.faces += blade.placed(angle, (0, 0.25, start)).faces
    return mesh


def ottoman(rng):
    """Round padded stool."""
    mesh = Mesh()
    cloth = cloth_material(rng)
    mesh.cylinder((0, 0.28), (0.05, 0.32), 0.26, cloth, n=18, caps='bottom')
    mesh.cylinder((0, 0.28), (0.32, 0.4), (0.27, 0.23), _brighter(cloth, 1.25), n=18)
    return mesh


def mirror(rng):
    """Bathroom mirror, hung above a basin."""
    mesh = Mesh()
    half = rng.uniform(0.22, 0.32)
    mesh.box((-half, 0, 1.15), (half, 0.02, 1.85), CHROME)
    mesh.box((-half + 0.02, 0, 1.17), (half - 0.02, 0.021, 1.83), Material((0.66, 0.74, 0.78), gloss=0.9))
    return mesh


def rug(rng, width, depth):
    """A flat rug."""
    mesh = Mesh()
    mesh.box((-width / 2, -depth / 2, 0), (width / 2, depth / 2, 0.008), Material((1, 1, 1), 'rug', None))
    return mesh
