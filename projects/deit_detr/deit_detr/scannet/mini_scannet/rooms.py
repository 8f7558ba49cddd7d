"""Rooms: which furniture a kind of room has, where it stands, and from where it is photographed."""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from deit_detr.scannet.classes import SCANNET_CLASSES, STUFF_IDS
from deit_detr.scannet.mini_scannet import fixtures, furniture
from deit_detr.scannet.mini_scannet.geometry import Camera, Mesh, Vector
from deit_detr.scannet.mini_scannet.materials import Material, pick, tint
from deit_detr.scannet.mini_scannet.render import Lights, Scene
from deit_detr.scannet.mini_scannet.textures import Atlas

THEMES = ('bedroom', 'kitchen', 'bathroom', 'living room', 'office')
_ID = {name: nyu40_id for name, nyu40_id, _ in SCANNET_CLASSES}
_Thing = tuple[str | None, Mesh]  # class, or None for what is not labelled
#: Relative weight of a class as the subject of a photograph; 1 if it is not here.
_INTEREST = {
    'shower curtain': 4, 'bathtub': 3, 'sink': 3, 'toilet': 6, 'refrigerator': 5, 'counter': 3, 'bed': 3, 'sofa': 3,
    'desk': 2, 'bookshelf': 3, 'table': 2, 'otherfurniture': 2, 'curtain': 2, 'window': 2}


class Room:
    """One furnished room.

    Args:
        seed: Integers that fix everything about the room.
        theme: One of :data:`THEMES`.

    Attributes:
        size: Width (x), depth (y) and height (z) in metres.
        meshes: Pairs of a mesh in world coordinates and its value in the instance map: nyu40_id * 1000 + k for
            furniture, the class id for wall and floor, 0 for unlabelled things.
        scene: The meshes, textured and lit, ready to be rendered.
    """

    def __init__(self, seed: tuple[int, ...], theme: str):
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        small = theme == 'bathroom'
        sides = self._rng.uniform(2.6, 3.4, 2) if small else self._rng.uniform(3.3, 4.7, 2)
        self.size = np.array([*sides, self._rng.uniform(2.4, 2.8)])
        self.meshes: list[tuple[Mesh, int]] = []
        self._boxes: list[np.ndarray] = []  # occupied space (2, 3), with what is kept free before doors and such
        self._subjects: list[tuple[str, np.ndarray]] = []  # class and centre of what is labelled
        self._count = dict.fromkeys(_ID, 0)
        self._build_shell(theme)
        getattr(self, '_furnish_' + theme.replace(' ', '_'))()
        self.scene = Scene(self.meshes, Atlas(seed), self._lights())
        names = sorted({name for name, _ in self._subjects})
        weights = np.array([_INTEREST.get(name, 1) for name in names], float)
        self._order = self._rng.choice(names, len(names), replace=False, p=weights / weights.sum())

    # Placing things.

    def _add(self, name: str | None, mesh: Mesh) -> None:
        """Keep a mesh in world coordinates; ``name`` is a class or None for unlabelled things."""
        value = 0
        if name is not None:
            self._count[name] += 1
            value = _ID[name] * 1000 + self._count[name]
            self._subjects.append((name, mesh.bounds().mean(0)))
        self.meshes.append((mesh, value))

    def _fits(self, box: np.ndarray) -> bool:
        low, high = box
        inside = (low[:2] > -0.02).all() and (high[:2] < self.size[:2] + 0.02).all()
        return inside and not any((low < b[1]).all() and (high > b[0]).all() for b in self._boxes)

    def _place(self, group: Sequence[_Thing], angle: float, move: np.ndarray, box: np.ndarray) -> None:
        self._boxes.append(box)
        for name, mesh in group:
            self._add(name, mesh.placed(angle, move))

    def _put_at_wall(self, *group: _Thing, clear: float = 0.0, out: float = 0.0) -> tuple[float, np.ndarray] | None:
        """Try to place things at some wall, facing the room.

        Args:
            *group: Things in common coordinates.
            clear: Metres to keep free in front of them.
            out: Distance from the wall in metres.

        Returns:
            tuple | None: Angle in radians and position (3,) of the things. None if there was no room for them.
        """
        width, depth = self.size[:2]
        turned = [_bounds(group, wall * np.pi / 2) for wall in range(4)]
        low, high = turned[0][:, 0]
        for _ in range(40):
            wall = int(self._rng.integers(4))
            share = np.clip(self._rng.uniform(-0.3, 1.3), 0, 1)  # often right in a corner
            along = 0.03 - low + share * max(0.0, self.size[wall % 2] - (high - low) - 0.06)
            x, y = ((along, out), (width - out, along), (width - along, depth - out), (out, depth - along))[wall]
            angle, move = wall * np.pi / 2, np.array([x, y, 0])
            box = turned[wall] + move
            ahead = clear * np.round([-np.sin(angle), np.cos(angle), 0])
            box = np.stack([np.minimum(box[0], box[0] + ahead), np.maximum(box[1], box[1] + ahead)])
            if self._fits(box):
                self._place(group, angle, move, box)
                return angle, move
        return None

    def _put_free(self, *group: _Thing, angle: float, center: Vector | None = None) -> None:
        """Try to stand things on the floor, turned by ``angle`` radians, at ``center`` (x, y) or anywhere."""
        turned = _bounds(group, angle)
        middle = turned.mean(0) * (1, 1, 0)
        for _ in range(40 if center is None else 1):
            spot = self._rng.uniform(0, self.size[:2]) if center is None else center
            move = np.array([*spot, 0]) - middle
            box = turned + move + [[-0.05, -0.05, 0], [0.05, 0.05, 0]]
            if self._fits(box):
                self._place(group, angle, move, box)
                return

    # What rooms consist of.

    def _build_shell(self, theme: str) -> None:
        rng, (width, depth, height) = self._rng, self.size
        tones = ((0.93, 0.91, 0.86), (0.85, 0.88, 0.9), (0.9, 0.84, 0.72), (0.8, 0.86, 0.78), (0.93, 0.93, 0.93),
                 (0.88, 0.78, 0.74), (0.72, 0.78, 0.86))
        if theme == 'bathroom' and rng.random() < 0.7:
            glazes = ((0.95, 0.95, 0.93), (0.75, 0.86, 0.9), (0.8, 0.9, 0.82))
            paint = Material(tint(rng, pick(rng, glazes)), 'tiles', 0.8, 0.25)
        else:
            paint = Material(tint(rng, pick(rng, tones), 0.05), pick(rng, ('plain', 'plain', 'stripes')), 1.2)
        if theme in ('bathroom', 'kitchen'):
            stones = ((0.75, 0.7, 0.63), (0.6, 0.62, 0.65), (0.8, 0.76, 0.7))
            ground = Material(tint(rng, pick(rng, stones)), pick(rng, ('tiles', 'checks')), 1.2, 0.25)
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
        for a, b in (((0, 0), (width, thick)), ((0, depth - thick), (width, depth)),
                     ((0, 0), (thick, depth)), ((width - thick, 0), (width, depth))):
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

    def _lights(self) -> Lights:
        rng = self._rng
        warm = np.array([1.0, rng.uniform(0.88, 0.98), rng.uniform(0.72, 0.95)], np.float32)
        day = np.array([rng.uniform(0.85, 1.0), 0.97, 1.0], np.float32)
        windows = [center for name, center in self._subjects if name == 'window']
        middle = self.size / 2
        window = windows[0] + 0.15 * (middle - windows[0]) if windows else middle
        lamp_color, window_color = warm * rng.uniform(1.2, 1.8), day * rng.uniform(0.2, 0.55)
        ambient = (0.6 * warm + 0.4 * day) * rng.uniform(0.4, 0.55)
        return Lights(self._lamp, lamp_color, window, window_color, ambient)

    def _door(self) -> None:
        self._put_at_wall(('door', fixtures.door(self._rng)), clear=0.7)

    def _windows(self, count: int, curtains: bool) -> None:
        rng = self._rng
        for _ in range(count):
            window = fixtures.window(rng, rng.uniform(0.9, 1.7) if curtains else rng.uniform(0.8, 1.1))
            group = [('window', window)]
            cloth = Material.cloth(rng)
            for side in (-1, 1) if curtains else ():
                middle = side * (window.bounds()[1, 0] + rng.uniform(-0.15, 0.02))
                curtain = fixtures.curtain(rng, rng.uniform(0.35, 0.6), cloth)
                group.append(('curtain', curtain.placed(0, (middle, 0, 0))))
            self._put_at_wall(*group, clear=0.05)

    def _pictures(self, count: int) -> None:
        for _ in range(count):
            self._put_at_wall(('picture', furniture.picture(self._rng)))

    def _others(self, count: int) -> None:
        for _ in range(count):
            build = pick(self._rng, (furniture.floor_lamp, furniture.plant, furniture.ottoman))
            self._put_at_wall(('otherfurniture', build(self._rng)), out=self._rng.uniform(0.05, 0.3))

    def _desk(self) -> None:
        rng = self._rng
        chair = furniture.office_chair(rng) if rng.random() < 0.7 else furniture.chair(rng)
        spot = (rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.05), 0)
        chair = _centered(chair).placed(np.pi + rng.uniform(-0.6, 0.6), spot)
        self._put_at_wall(('desk', furniture.desk(rng)), (None, furniture.computer(rng)), ('chair', chair))

    def _dining(self) -> None:
        rng = self._rng
        table = furniture.table(rng)
        (_, y0, _), (half, y1, height) = table.bounds()
        group = [('table', table), (None, furniture.crockery(rng, height, (y0 + y1) / 2))]
        design = int(rng.integers(1 << 30))
        for x, side in ((-0.5, 1), (0.5, 1), (-0.5, -1), (0.5, -1)):
            if rng.random() < 0.7:
                away = rng.uniform(0.1, 0.3)
                spot = (x * half, y1 + away if side > 0 else y0 - away, 0)
                facing = (np.pi if side > 0 else 0) + rng.uniform(-0.3, 0.3)
                group.append(('chair', _centered(furniture.chair(np.random.default_rng(design))).placed(facing, spot)))
        self._put_free(*group, angle=pick(rng, (0, np.pi / 2)))

    def _chair(self) -> None:
        self._put_free(('chair', furniture.chair(self._rng)), angle=self._rng.uniform(0, 2 * np.pi))

    def _cabinet(self) -> None:
        self._put_at_wall(('cabinet', furniture.cabinet(self._rng)), clear=0.2)

    def _bookshelf(self) -> None:
        self._put_at_wall(('bookshelf', furniture.bookshelf(self._rng)), clear=0.3)

    def _furnish_bedroom(self) -> None:
        rng = self._rng
        self._put_at_wall(('bed', furniture.bed(rng)), clear=0.3)
        self._door()
        self._windows(1, curtains=True)
        self._cabinet()
        self._others(rng.integers(1, 3))
        if rng.random() < 0.4:
            self._desk()
        if rng.random() < 0.3:
            self._bookshelf()
        self._pictures(rng.integers(1, 4))
        if rng.random() < 0.5:
            self._chair()
        self._rug()

    def _furnish_kitchen(self) -> None:
        rng = self._rng
        front, stone = fixtures.kitchen_surfaces(rng)
        width = rng.uniform(1.8, 2.6)
        x0 = rng.uniform(-width / 2 + 0.25, width / 2 - 0.8)
        hole = (x0, x0 + 0.5, 0.14, 0.5)
        group = [('counter', fixtures.counter(rng, width, front, stone, hole)), ('sink', fixtures.sink_bowl(rng, hole))]
        part = width * rng.uniform(0.4, 0.6)
        for side in (-1, 1):
            if rng.random() < 0.7:
                shift = (side * (width - part) / 2, 0, 0)
                group.append(('cabinet', fixtures.wall_cabinet(rng, part, front).placed(0, shift)))
            part = width - part
        self._put_at_wall(*group, clear=0.4)
        self._put_at_wall(('refrigerator', fixtures.refrigerator(rng)), clear=0.4)
        self._door()
        self._windows(1, curtains=rng.random() < 0.4)
        if rng.random() < 0.5:
            self._put_at_wall(('counter', fixtures.counter(rng, rng.uniform(1.0, 1.5), front, stone)), clear=0.3)
        self._dining()
        if rng.random() < 0.5:
            self._cabinet()
        self._pictures(rng.integers(0, 3))

    def _furnish_bathroom(self) -> None:
        rng = self._rng
        length = rng.uniform(1.5, 1.65)
        tub = fixtures.bathtub(rng, length)
        start = -length / 2 + 0.05
        sheet = fixtures.shower_curtain(rng, length, start, start + length * rng.uniform(0.3, 0.6))
        sheet = sheet.placed(pick(rng, (0, np.pi)), (0, tub.bounds()[1, 1] - 0.1, 0))
        self._put_at_wall(('bathtub', tub), ('shower curtain', sheet), clear=0.3)
        self._put_at_wall(('toilet', fixtures.toilet(rng)), clear=0.35)
        self._put_at_wall(('sink', fixtures.sink(rng)), (None, fixtures.mirror(rng)), clear=0.35)
        self._door()
        if rng.random() < 0.6:
            self._windows(1, curtains=False)
        if rng.random() < 0.5:
            self._cabinet()
        self._pictures(rng.integers(0, 2))

    def _furnish_living_room(self) -> None:
        rng = self._rng
        where = self._put_at_wall(('sofa', furniture.sofa(rng)), clear=0.3)
        self._door()
        self._windows(rng.integers(1, 3), curtains=True)
        self._bookshelf()
        if where is not None:
            angle, position = where
            ahead = 1.65 * np.array([-np.sin(angle), np.cos(angle)])
            self._put_free(('table', furniture.table(rng, low=True)), angle=angle, center=position[:2] + ahead)
        if rng.random() < 0.5:
            self._put_at_wall(('sofa', furniture.sofa(rng)), clear=0.3)
        if rng.random() < 0.4:
            self._chair()
        self._cabinet()
        self._others(2)
        self._pictures(rng.integers(1, 4))
        self._rug()

    def _furnish_office(self) -> None:
        rng = self._rng
        self._desk()
        self._door()
        for _ in range(rng.integers(0, 3)):
            self._desk()
        self._bookshelf()
        self._windows(1, curtains=rng.random() < 0.5)
        self._cabinet()
        if rng.random() < 0.4:
            self._dining()
        self._others(rng.integers(0, 2))
        self._pictures(rng.integers(0, 3))

    def _rug(self) -> None:
        if self._rng.random() < 0.6:
            x, y = self.size[:2] * self._rng.uniform(0.4, 0.6, 2)
            rug = furniture.rug(self._rng, self._rng.uniform(1.2, 1.9), self._rng.uniform(0.9, 1.4))
            self._add(None, rug.placed(0, (x, y, 0)))

    # Photographs.

    def camera(self, index: int, size: tuple[int, int], fov: float) -> Camera:
        """Return a camera at eye height that sees some of the furniture.

        Args:
            index: Number of the photograph, >= 0. The classes of the room take turns as its subject.
            size: Image width and height in pixels.
            fov: Horizontal field of view in radians.
        """
        rng = np.random.default_rng((*self._seed, 1, index))
        _, subject = pick(rng, [s for s in self._subjects if s[0] == self._order[index % len(self._order)]])
        views = []
        for _ in range(40):
            position = np.array([*rng.uniform(0.3, self.size[:2] - 0.3), rng.uniform(1.2, 1.8)])
            target = subject + rng.normal(0, 0.25, 3)
            target[2] = np.clip(target[2], 0.45, 1.5)
            view = Camera.look_at(position, target, fov, size, rng.normal(0, 0.04))
            blocked = any((position > b[0] - 0.4).all() and (position < b[1] + 0.4).all() for b in self._boxes)
            near = np.linalg.norm(target[:2] - position[:2]) < 1.3
            views.append((self._classes_in_view(view) + rng.uniform(0, 1) - 10 * near - 100 * blocked, view))
        return max(views, key=itemgetter(0))[1]

    def _classes_in_view(self, camera: Camera) -> int:
        """Return the number of classes of which the middle of an object is in view, behind others or not."""
        centers = np.array([center for _, center in self._subjects])
        x, y, z = ((centers - camera.position) @ camera.rotation.T).T
        z = np.maximum(z, 1e-3)
        half_width, half_height = np.array(camera.size) / 2 / camera.focal
        seen = (np.abs(x / z) < half_width) & (np.abs(y / z) < half_height) & (z > 0.6)
        return len({self._subjects[i][0] for i in np.flatnonzero(seen)})


def _centered(mesh: Mesh) -> Mesh:
    """Return the mesh with the middle of its plan at the origin."""
    return mesh.placed(0, -mesh.bounds().mean(0) * (1, 1, 0))


def _bounds(group: Sequence[_Thing], angle: float) -> np.ndarray:
    """Return the lowest and the highest corner, (2, 3), of a group that is turned by ``angle`` radians."""
    corners = np.stack([mesh.placed(angle).bounds() for _, mesh in group])
    return np.stack([corners[:, 0].min(0), corners[:, 1].max(0)])
