"""Rooms: which furniture a kind of room has, where it stands, and from where it is photographed."""

import numpy as np

from ..scannet_classes import SCANNET_CLASSES, STUFF_IDS
from . import furniture as make
from .furniture import pick, tint
from .render import Camera, Lights, Material, Mesh, Scene
from .textures import Atlas

THEMES = ('bedroom', 'kitchen', 'bathroom', 'living room', 'office')
_ID = {name: nyu40_id for name, nyu40_id, _ in SCANNET_CLASSES}
#: How much a class is sought as the subject of a photograph.
_INTEREST = {
    'shower curtain': 4, 'bathtub': 3, 'sink': 3, 'toilet': 3, 'refrigerator': 4, 'counter': 2, 'bed': 3, 'sofa': 3,
    'desk': 2, 'bookshelf': 3, 'table': 2, 'otherfurniture': 2, 'curtain': 2, 'window': 2,
}  # fmt: skip


class Room:
    """One furnished room.

    Args:
        seed: Integers that fix everything about the room.
        theme: One of :data:`THEMES`.

    Attributes:
        size: Width (x), depth (y) and height (z) in metres.
        meshes: Pairs of a mesh and its value in the instance map: nyu40_id * 1000 + k for furniture,
            the class id for wall and floor, 0 for what has none of the 20 classes.
    """

    def __init__(self, seed: tuple[int, ...], theme: str):
        self._rng = np.random.default_rng(seed)
        small = theme == 'bathroom'
        sides = self._rng.uniform(2.6, 3.4, 2) if small else self._rng.uniform(3.3, 4.7, 2)
        self.size = np.array([*sides, self._rng.uniform(2.4, 2.8)])
        self.meshes = []
        self._boxes = []  # occupied space: (mesh bounds, what camera and furniture must keep free)
        self._subjects = []  # (class name, centre)
        self._count = dict.fromkeys(_ID, 0)
        self._build_shell(theme)
        getattr(self, '_furnish_' + theme.replace(' ', '_'))()
        self.scene = Scene(self.meshes, Atlas(seed), self._lights())

    # Placing things.

    def _add(self, name, mesh):
        """Keep a mesh in world coordinates; ``name`` is a class or None for unlabelled things."""
        value = 0
        if name is not None:
            self._count[name] += 1
            value = _ID[name] * 1000 + self._count[name]
            self._subjects.append((name, mesh.bounds().mean(0)))
        self.meshes.append((mesh, value))

    def _is_free(self, box):
        low, high = box
        inside = (low[:2] > -0.02).all() and (high[:2] < self.size[:2] + 0.02).all()
        return inside and not any((low < b[1]).all() and (high > b[0]).all() for b in self._boxes)

    def _along_wall(self, mesh, wall, share, out=0.0):
        """A mesh moved to ``share`` (0..1) of a wall's free length, facing into the room."""
        low, high = mesh.bounds()[:, 0]
        length = self.size[wall % 2]
        s = 0.03 - low + share * max(0.0, length - (high - low) - 0.06)
        width, depth = self.size[:2]
        x, y = ((s, out), (width - out, s), (width - s, depth - out), (out, depth - s))[wall]
        return np.pi / 2 * wall, np.array([x, y, 0])

    def _put_on_wall(self, name, builder, clear=0.0, with_=(), walls=(0, 1, 2, 3), out=0.0, tries=40):
        """Try to place what ``builder(rng)`` makes at a wall.

        Args:
            name: Class.
            builder: Makes the mesh.
            clear: Metres to keep free in front of it.
            with_: Pairs (class or None, mesh) that come along, in the coordinates of the mesh.
            walls: Walls to try.
            out: Distance from the wall.
            tries: Positions to try.

        Returns:
            tuple | None: Angle and position where it was placed; None if there was no room for it.
        """
        mesh = builder(self._rng)
        group = Mesh()
        group.faces = mesh.faces + [face for _, extra in with_ for face in extra.faces]
        room = group.bounds()
        room[1, 1] += clear
        for _ in range(tries):
            where = self._along_wall(group, pick(self._rng, walls), np.clip(self._rng.uniform(-0.3, 1.3), 0, 1), out)
            corners = Mesh()
            corners.face([room[0], room[1]], None)
            box = corners.placed(*where).bounds()
            if self._is_free(box + [[0.03, 0.03, 0], [-0.03, -0.03, 0]]):
                self._boxes.append(box)
                for part_name, part in ((name, mesh), *with_):
                    self._add(part_name, part.placed(*where))
                return where
        return None

    def _put_free(self, group, angle, center=None, tries=40):
        """Try to stand things on the floor.

        Args:
            group: Pairs (class or None, mesh), in common coordinates.
            angle: How far to turn them, in radians.
            center: Where (x, y); None tries anywhere.
            tries: Positions to try.
        """
        whole = Mesh()
        whole.faces = [face for _, mesh in group for face in mesh.faces]
        turned = whole.placed(angle).bounds()
        middle = turned.mean(0) * (1, 1, 0)
        for _ in range(tries if center is None else 1):
            spot = self._rng.uniform(0, self.size[:2]) if center is None else np.asarray(center)
            move = np.array([*spot, 0]) - middle
            box = turned + move
            if self._is_free(box + [[-0.05, -0.05, 0], [0.05, 0.05, 0]]):
                self._boxes.append(box)
                for name, mesh in group:
                    self._add(name, mesh.placed(angle, move))
                return

    # What rooms consist of.

    def _build_shell(self, theme):
        rng, (width, depth, height) = self._rng, self.size
        tones = ((0.93, 0.91, 0.86), (0.85, 0.88, 0.9), (0.9, 0.84, 0.72), (0.8, 0.86, 0.78), (0.93, 0.93, 0.93),
                 (0.88, 0.78, 0.74), (0.72, 0.78, 0.86))  # fmt: skip
        if theme == 'bathroom' and rng.random() < 0.7:
            glazes = ((0.95, 0.95, 0.93), (0.75, 0.86, 0.9), (0.8, 0.9, 0.82))
            paint = Material(tint(rng, pick(rng, glazes)), 'tiles', 0.8, 0.25)
        else:
            paint = Material(tint(rng, pick(rng, tones), 0.05), pick(rng, ('plain', 'plain', 'stripes')), 1.2)
        if theme in ('bathroom', 'kitchen'):
            ground = Material(tint(rng, pick(rng, ((0.75, 0.7, 0.63), (0.6, 0.62, 0.65), (0.8, 0.76, 0.7)))),
                              pick(rng, ('tiles', 'checks')), 1.2, 0.25)  # fmt: skip
        else:
            carpets = ((0.62, 0.58, 0.52), (0.45, 0.48, 0.55), (0.55, 0.42, 0.36))
            boards = pick(rng, ((0.66, 0.45, 0.27), (0.8, 0.62, 0.42)))
            if rng.random() < 0.65:
                ground = Material(tint(rng, boards), 'planks', 0.9, 0.25)
            else:
                ground = Material(tint(rng, pick(rng, carpets)), 'carpet', 0.8)
        wall, floor, ceiling = Mesh(), Mesh(), Mesh()
        wall.box((0, 0, 0), self.size, paint, inside=True, caps='')
        skirting = Material(tuple(0.6 * c + 0.35 for c in paint.color), gloss=0.2)
        low, thick = 0.09, 0.012
        for a, b in (((0, 0), (width, thick)), ((0, depth - thick), (width, depth)), ((0, 0), (thick, depth)),
                     ((width - thick, 0), (width, depth))):  # fmt: skip
            wall.box((*a, 0), (*b, low), skirting, bottom=None)
        floor.face([(0, depth, 0), (width, depth, 0), (width, 0, 0), (0, 0, 0)], ground)
        white = Material((0.94, 0.94, 0.93), glow=0.25)
        ceiling.face([(0, 0, height), (width, 0, height), (width, depth, height), (0, depth, height)], white)
        wall_id, floor_id = STUFF_IDS
        self.meshes += [(wall, wall_id), (floor, floor_id), (ceiling, 0)]
        self._lamp = np.array([width * rng.uniform(0.35, 0.65), depth * rng.uniform(0.35, 0.65), height - 0.12])
        fixture = Mesh()
        fixture.cylinder(self._lamp[:2], (height - 0.08, height), (0.2, 0.16), Material((1, 0.97, 0.9), glow=2.0), n=18)
        self.meshes.append((fixture, 0))

    def _lights(self):
        rng = self._rng
        warm = np.array([1.0, rng.uniform(0.88, 0.98), rng.uniform(0.72, 0.95)], np.float32)
        day = np.array([rng.uniform(0.85, 1.0), 0.97, 1.0], np.float32)
        windows = [center for name, center in self._subjects if name == 'window']
        middle = self.size / 2
        window = windows[0] + 0.15 * (middle - windows[0]) if windows else middle
        return Lights(
            lamp=self._lamp,
            lamp_color=warm * rng.uniform(1.2, 1.8),
            window=window,
            window_color=day * rng.uniform(0.2, 0.55),
            ambient=(0.6 * warm + 0.4 * day) * rng.uniform(0.4, 0.55),
        )

    def _windows(self, count, curtains):
        for _ in range(count):
            window = make.window(self._rng, None if curtains else self._rng.uniform(0.8, 1.1))
            half = window.bounds()[1, 0]
            cloth = make.cloth_material(self._rng)
            with_ = []
            if curtains:
                for side in (-1, 1):
                    width = self._rng.uniform(0.35, 0.6)
                    middle = side * (half + self._rng.uniform(-0.15, 0.02))
                    with_.append(('curtain', make.curtain(self._rng, width, cloth).placed(0, (middle, 0, 0))))
            self._put_on_wall('window', lambda _, window=window: window, 0.05, with_)

    def _pictures(self, count):
        for _ in range(count):
            self._put_on_wall('picture', make.picture)

    def _others(self, count):
        for _ in range(count):
            self._put_on_wall('otherfurniture', make.other, out=self._rng.uniform(0.05, 0.3))

    def _desk(self):
        spot = (self._rng.uniform(-0.15, 0.15), self._rng.uniform(0.85, 1.05), 0)
        chair = make.office_chair if self._rng.random() < 0.7 else make.chair
        chair = _centered(chair(self._rng)).placed(np.pi + self._rng.uniform(-0.6, 0.6), spot)
        self._put_on_wall('desk', make.desk, with_=[(None, make.computer(self._rng)), ('chair', chair)])

    def _dining(self):
        rng = self._rng
        table = make.table(rng)
        (_, y0, _), (half, y1, height) = table.bounds()
        group = [('table', table), (None, make.crockery(rng, height, (y0 + y1) / 2))]
        design = int(rng.integers(1 << 30))
        for x, side in ((-0.5, 1), (0.5, 1), (-0.5, -1), (0.5, -1)):
            if rng.random() < 0.7:
                away = rng.uniform(0.1, 0.3)
                spot = (x * half, y1 + away if side > 0 else y0 - away, 0)
                facing = (np.pi if side > 0 else 0) + rng.uniform(-0.3, 0.3)
                group.append(('chair', _centered(make.chair(np.random.default_rng(design))).placed(facing, spot)))
        self._put_free(group, pick(rng, (0, np.pi / 2)))

    def _furnish_bedroom(self):
        rng = self._rng
        self._put_on_wall('bed', make.bed, 0.3)
        self._put_on_wall('door', make.door, clear=0.7)
        self._windows(1, True)
        self._put_on_wall('cabinet', make.cabinet, 0.3)
        self._others(int(rng.integers(1, 3)))
        if rng.random() < 0.4:
            self._desk()
        if rng.random() < 0.3:
            self._put_on_wall('bookshelf', make.bookshelf, 0.2)
        self._pictures(int(rng.integers(1, 4)))
        if rng.random() < 0.5:
            self._put_free([('chair', make.chair(rng))], rng.uniform(0, 2 * np.pi))
        self._rug()

    def _furnish_kitchen(self):
        rng = self._rng
        front, stone = make.kitchen_surfaces(rng)
        width = rng.uniform(1.8, 2.6)
        x0 = rng.uniform(-width / 2 + 0.25, width / 2 - 0.8)
        hole = (x0, x0 + 0.5, 0.14, 0.5)
        extras = [('sink', make.sink_bowl(rng, hole))]
        part = width * rng.uniform(0.4, 0.6)
        for side in (-1, 1):
            if rng.random() < 0.7:
                shift = (side * (width - part) / 2, 0, 0)
                extras.append(('cabinet', make.wall_cabinet(rng, part, front).placed(0, shift)))
                part = width - part
        self._put_on_wall('counter', lambda r: make.counter(r, width, front, stone, hole), 0.4, extras)
        self._put_on_wall('refrigerator', make.refrigerator, 0.4)
        self._put_on_wall('door', make.door, clear=0.7)
        self._windows(1, rng.random() < 0.4)
        if rng.random() < 0.5:
            second = rng.uniform(1.0, 1.5)
            self._put_on_wall('counter', lambda r: make.counter(r, second, front, stone), 0.3)
        self._dining()
        if rng.random() < 0.5:
            self._put_on_wall('cabinet', make.cabinet, 0.2)
        self._pictures(int(rng.integers(0, 3)))

    def _furnish_bathroom(self):
        rng = self._rng
        length = rng.uniform(1.5, 1.65)
        tub = make.bathtub(rng, length)
        edge = tub.bounds()[1, 1] - 0.1
        start = -length / 2 + 0.05
        sheet = make.shower_curtain(rng, length, start, start + length * rng.uniform(0.3, 0.6))
        sheet = sheet.placed(pick(rng, (0, np.pi)), (0, edge, 0))
        self._put_on_wall('bathtub', lambda _: tub, 0.3, [('shower curtain', sheet)])
        self._put_on_wall('toilet', make.toilet, 0.35)
        self._put_on_wall('sink', make.sink, 0.35, [(None, make.mirror(rng))])
        self._put_on_wall('door', make.door, clear=0.7)
        if rng.random() < 0.6:
            self._windows(1, False)
        if rng.random() < 0.5:
            self._put_on_wall('cabinet', make.cabinet, 0.2)
        self._pictures(int(rng.integers(0, 2)))

    def _furnish_living_room(self):
        rng = self._rng
        where = self._put_on_wall('sofa', make.sofa, 0.3)
        self._put_on_wall('door', make.door, clear=0.7)
        self._windows(int(rng.integers(1, 3)), True)
        self._put_on_wall('bookshelf', make.bookshelf, 0.3)
        if where is not None:
            angle, position = where
            ahead = 1.65 * np.array([-np.sin(angle), np.cos(angle)])
            self._put_free([('table', make.table(rng, low=True))], angle, position[:2] + ahead)
        if rng.random() < 0.5:
            self._put_on_wall('sofa', make.sofa, 0.3)
        if rng.random() < 0.4:
            self._put_free([('chair', make.chair(rng))], rng.uniform(0, 2 * np.pi))
        self._put_on_wall('cabinet', make.cabinet, 0.2)
        self._others(2)
        self._pictures(int(rng.integers(1, 4)))
        self._rug()

    def _furnish_office(self):
        rng = self._rng
        self._desk()
        self._put_on_wall('door', make.door, clear=0.7)
        for _ in range(int(rng.integers(0, 3))):
            self._desk()
        self._put_on_wall('bookshelf', make.bookshelf, 0.3)
        self._windows(1, rng.random() < 0.5)
        self._put_on_wall('cabinet', make.cabinet, 0.2)
        if rng.random() < 0.4:
            self._dining()
        self._others(int(rng.integers(0, 2)))
        self._pictures(int(rng.integers(0, 3)))

    def _rug(self):
        if self._rng.random() < 0.6:
            x, y = self.size[:2] * self._rng.uniform(0.4, 0.6, 2)
            rug = make.rug(self._rng, self._rng.uniform(1.2, 1.9), self._rng.uniform(0.9, 1.4))
            self._add(None, rug.placed(0, (x, y, 0)))

    # Photographs.

    def camera(self, seed: tuple[int, ...], size: tuple[int, int], fov: float) -> Camera:
        """A camera at eye height that sees some of the furniture.

        Args:
            seed: Integers that fix the choice.
            size: Image width and height in pixels.
            fov: Horizontal field of view in radians.
        """
        rng = np.random.default_rng(seed)
        weights = np.array([_INTEREST.get(name, 1) for name, _ in self._subjects], float)
        _, subject = self._subjects[rng.choice(len(weights), p=weights / weights.sum())]
        best, best_score = None, -np.inf
        for _ in range(40):
            position = np.array([*rng.uniform(0.3, self.size[:2] - 0.3), rng.uniform(1.2, 1.8)])
            target = subject + rng.normal(0, 0.25, 3)
            target[2] = np.clip(target[2], 0.45, 1.5)
            view = Camera.look_at(position, target, fov, size, rng.normal(0, 0.04))
            blocked = any((position > b[0] - 0.4).all() and (position < b[1] + 0.4).all() for b in self._boxes)
            near = np.linalg.norm(target[:2] - position[:2]) < 1.3
            score = self._classes_in_view(view) + rng.uniform(0, 1) - 10 * near - 100 * blocked
            if score > best_score:
                best, best_score = view, score
        return best

    def _classes_in_view(self, camera):
        """Number of classes of which the middle of an object is in view, behind others or not."""
        centers = np.array([center for _, center in self._subjects])
        x, y, z = ((centers - camera.position) @ camera.rotation.T).T
        z = np.maximum(z, 1e-3)
        half_width, half_height = np.array(camera.size) / 2 / camera.focal
        seen = (np.abs(x / z) < half_width) & (np.abs(y / z) < half_height) & (z > 0.6)
        return len({self._subjects[i][0] for i in np.flatnonzero(seen)})


def _centered(mesh):
    """The mesh with the middle of its plan at the origin."""
    return mesh.placed(0, -mesh.bounds().mean(0) * (1, 1, 0))
