"""Meshes of convex faces, and the cameras that see them.

The world is in metres with z up. A camera looks along its z, with x right and y down; pixel coordinates are integers at
pixel centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deit_detr.scannet.mini_scannet.materials import Material

Vector = Sequence[float] | np.ndarray
Polygon = Sequence[Vector] | np.ndarray


class Face(NamedTuple):
    """A planar convex polygon.

    Attributes:
        vertices: Corners (k, 3) in metres, clockwise as seen from outside.
        material: Its surface.
        u_axis: Direction (3,) along which the texture runs. None: along the first edge.
        bend: Curvature in that direction in 1/m. It bends the normal, so that a prism is lit like a cylinder.
    """

    vertices: np.ndarray
    material: Material
    u_axis: Vector | None = None
    bend: float = 0.0


class Mesh:
    """Faces of one object, in the coordinates of the object.

    Attributes:
        faces: The faces, in the order in which they were added.
    """

    def __init__(self):
        self.faces: list[Face] = []

    def face(self, vertices: Polygon, material: Material, u_axis: Vector | None = None, bend: float = 0.0) -> None:
        """Add a :class:`Face`."""
        self.faces.append(Face(np.asarray(vertices, float), material, u_axis, bend))

    def loft(
        self, lower: Polygon, upper: Polygon, material: Material, bend: float = 0.0, inside: bool = False,
        caps: str = 'bottom top', **sides: Material | None,
    ) -> None:
        """Add the solid between two polygons of equal length with pairwise parallel edges.

        Args:
            lower: Polygon (k, 3), counter-clockwise as seen from the upper one.
            upper: Polygon (k, 3).
            material: Surface of every side that ``sides`` does not name.
            bend: Curvature of the sides, see :class:`Face`.
            inside: Turn the faces inwards, for a vessel or a room.
            caps: Which ends to close.
            **sides: Material by side: ``top``, ``bottom``, or the side of a box (see :meth:`box`). None leaves the
                side out.
        """
        lower, upper = np.asarray(lower, float), np.asarray(upper, float)
        names = ('back', 'right', 'front', 'left') if len(upper) == 4 else ()
        for i in range(len(upper)):
            j = (i + 1) % len(upper)
            own = sides.get(names[i], material) if names else material
            if own is not None:
                quad = (upper[j], upper[i], lower[i], lower[j]) if inside else (upper[i], upper[j], lower[j], lower[i])
                self.face(quad, own, bend=-bend if inside else bend)
        for name, polygon in (('top', upper[::-1]), ('bottom', lower)):
            own = sides.get(name, material)
            if name in caps and own is not None:
                self.face(polygon[::-1] if inside else polygon, own, u_axis=(1, 0, 0))

    def box(self, low: Vector, high: Vector, material: Material, **options: Any) -> None:
        """Add an axis-aligned box from corner ``low`` to corner ``high``, with the options of :meth:`loft`.

        Its sides are ``front`` (+y), ``back`` (-y), ``left`` (-x), ``right`` (+x), ``top`` and ``bottom``.
        """
        (x0, y0, z0), (x1, y1, z1) = low, high
        plan = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        self.loft([(x, y, z0) for x, y in plan], [(x, y, z1) for x, y in plan], material, **options)

    def cylinder(
        self, center: Vector, z: Vector, radii: float | Vector, material: Material, n: int = 14, **options: Any
    ) -> None:
        """Add an upright elliptic cylinder or cone.

        Args:
            center: Centre (x, y).
            z: Heights (bottom, top).
            radii: Radii (bottom x, bottom y, top x, top y), or (bottom, top), or one number.
            material: Surface.
            n: Number of sides.
            **options: Passed to :meth:`loft`.
        """
        radii = np.atleast_1d(np.asarray(radii, float))
        bx, by, tx, ty = {1: radii.repeat(4), 2: radii.repeat(2)}.get(len(radii), radii)
        angle = np.arange(n) * (2 * np.pi / n)
        x, y = np.cos(angle), np.sin(angle)
        bottom = np.stack([center[0] + bx * x, center[1] + by * y, np.full(n, z[0], float)], 1)
        top = np.stack([center[0] + tx * x, center[1] + ty * y, np.full(n, z[1], float)], 1)
        self.loft(bottom, top, material, 1 / max(bx, by, tx, ty), **options)

    def placed(self, angle: float = 0.0, position: Vector = (0, 0, 0)) -> 'Mesh':
        """Return a copy turned by ``angle`` radians about the z axis, then moved to ``position`` (3,)."""
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        mesh = Mesh()
        for vertices, material, u_axis, bend in self.faces:
            u_axis = None if u_axis is None else np.asarray(u_axis) @ turn
            mesh.faces.append(Face(vertices @ turn + position, material, u_axis, bend))
        return mesh

    def bounds(self) -> np.ndarray:
        """Return the lowest and the highest corner, (2, 3)."""
        points = np.concatenate([face.vertices for face in self.faces])
        return np.stack([points.min(0), points.max(0)])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: Centre (3,) in the world, metres.
        rotation: Rows are the camera's right, down and forward directions in the world, (3, 3).
        focal: Focal length in pixels.
        center: Principal point (x, y) in pixels.
        size: Image width and height in pixels.
    """

    position: np.ndarray
    rotation: np.ndarray
    focal: float
    center: np.ndarray
    size: tuple[int, int]

    @classmethod
    def look_at(
        cls, position: Vector, target: Vector, fov: float, size: tuple[int, int], roll: float = 0.0
    ) -> 'Camera':
        """Return a camera that looks from ``position`` to ``target``.

        Args:
            position: Centre (3,) of the camera.
            target: Point (3,) in the middle of the image; not right above or below the camera.
            fov: Horizontal field of view in radians.
            size: Image width and height in pixels.
            roll: Turn about the viewing direction, in radians.
        """
        position = np.asarray(position, float)
        forward = np.asarray(target, float) - position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(roll), np.sin(roll)
        rotation = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
        return cls(position, rotation, size[0] / (2 * np.tan(fov / 2)), (np.array(size) - 1) / 2, tuple(size))

    def finer(self, factor: int) -> 'Camera':
        """Return the same view with ``factor`` times as many samples a side; every ``factor``-th is a pixel centre."""
        size = self.size[0] * factor, self.size[1] * factor
        return Camera(self.position, self.rotation, self.focal * factor, self.center * factor, size)

    def intrinsics(self) -> np.ndarray:
        """Return the matrix (4, 4) from camera coordinates to pixels."""
        matrix = np.eye(4)
        matrix[0, 0] = matrix[1, 1] = self.focal
        matrix[:2, 2] = self.center
        return matrix

    def pose(self) -> np.ndarray:
        """Return the matrix (4, 4) from camera to world coordinates."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation.T, self.position
        return matrix
