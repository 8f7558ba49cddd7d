"""A small software renderer: convex faces, one depth buffer, textured and lit per pixel.

Faces are planar convex polygons. Visibility comes first (which face does each sample see, and how far
away is it), then every sample is textured and lit at once, so that the cost of shading does not depend
on the number of faces.

Coordinates: the world is in metres with z up; a camera looks along its z, with x right and y down; pixel
coordinates are integers at pixel centres. Shape suffixes: F faces, K vertices of the largest face.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from deit_detr.scannet.mini_scannet.textures import TEXTURE_SIZE, Atlas

#: Colour samples per pixel and axis. Every second sample lies on a pixel centre: labels and depth use it.
SUPERSAMPLING = 2
NEAR = 0.05
_BAND = 1 << 17  # samples shaded at a time, to stay within the processor's cache
_SHADOW_SIZE = 512
_SHADOW_SLOPE = 2.5  # tangent of half the opening angle of the lamp's view of the room
_SHADOW_TAPS = ((-1.6, -0.6), (0.6, -1.6), (1.6, 0.6), (-0.6, 1.6))


@dataclass(frozen=True)
class Material:
    """Surface of a face.

    Attributes:
        color: RGB reflectance, 0..1, multiplied with the texture.
        texture: Name of a texture, with an optional variant: ``'wood'``, ``'painting:3'``.
        scale: Metres that one repeat of the texture covers; None stretches it once over the face.
        gloss: Strength of the highlight, 0..1.
        glow: Light the surface emits by itself, in units of its colour.
    """

    color: tuple[float, float, float]
    texture: str = 'plain'
    scale: float | None = 1.0
    gloss: float = 0.0
    glow: float = 0.0


class Mesh:
    """Faces of one object in its own coordinates.

    Attributes:
        faces: Tuples of vertices (k, 3), clockwise as seen from outside; the material; the direction along
            which the texture runs (None: the first edge); and the curvature in that direction in 1/m, which
            bends the normal so that a prism is lit like a cylinder.
    """

    def __init__(self):
        self.faces = []

    def face(self, vertices, material: Material, u_axis=None, bend: float = 0.0) -> None:
        """Add one convex face, its vertices clockwise as seen from outside."""
        self.faces.append((np.asarray(vertices, float), material, u_axis, bend))

    def loft(self, lower, upper, material: Material, bend=0.0, inside=False, caps='bottom top', **sides) -> None:
        """Add the solid between two polygons of equal length with pairwise parallel edges.

        Args:
            lower: Polygon (k, 3), counter-clockwise as seen from the upper one.
            upper: Polygon (k, 3).
            material: Surface of every side without its own.
            bend: Curvature of the sides, see :attr:`faces`.
            inside: Turn the faces inwards, for a vessel or a room.
            caps: Which ends to close.
            **sides: Material by side: ``top``, ``bottom``, or the side of a box (see :meth:`box`);
                None leaves the side out.
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

    def box(self, low, high, material: Material, inside=False, caps='bottom top', **sides) -> None:
        """Add an axis-aligned box from corner ``low`` to ``high``.

        Its sides are ``front`` (+y), ``back`` (-y), ``left`` (-x), ``right`` (+x), ``top`` and ``bottom``.
        """
        (x0, y0, z0), (x1, y1, z1) = low, high
        plan = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        self.loft([(x, y, z0) for x, y in plan], [(x, y, z1) for x, y in plan], material, 0.0, inside, caps, **sides)

    def cylinder(self, center, z, radii, material: Material, n=14, shift=(0, 0), inside=False, **options) -> None:
        """Add an upright elliptic cylinder or cone.

        Args:
            center: Centre (x, y) of the bottom.
            z: Heights (bottom, top).
            radii: Radii (bottom x, bottom y, top x, top y), or (bottom, top), or one number.
            material: Surface.
            n: Number of sides.
            shift: Centre of the top relative to the bottom's.
            inside: Turn it inwards.
            **options: Passed to :meth:`loft`.
        """
        radii = np.atleast_1d(np.asarray(radii, float))
        bx, by, tx, ty = {1: radii.repeat(4), 2: radii.repeat(2)}.get(len(radii), radii)
        angle = np.arange(n) * (2 * np.pi / n)
        x, y = np.cos(angle), np.sin(angle)
        flat = np.ones(n)
        bottom = np.stack([center[0] + bx * x, center[1] + by * y, z[0] * flat], 1)
        top = np.stack([center[0] + shift[0] + tx * x, center[1] + shift[1] + ty * y, z[1] * flat], 1)
        self.loft(bottom, top, material, 1 / max(bx, by, tx, ty), inside, **options)

    def placed(self, angle: float = 0.0, position=(0, 0, 0)) -> 'Mesh':
        """A copy turned by ``angle`` radians about the z axis, then moved to ``position``."""
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        mesh = Mesh()
        for vertices, material, u_axis, bend in self.faces:
            u_axis = None if u_axis is None else np.asarray(u_axis) @ turn
            mesh.faces.append((vertices @ turn + position, material, u_axis, bend))
        return mesh

    def bounds(self) -> np.ndarray:
        """Lowest and highest corner, array (2, 3)."""
        points = np.concatenate([face[0] for face in self.faces])
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
    def look_at(cls, position, target, fov: float, size, roll: float = 0.0) -> 'Camera':
        """A camera at ``position`` looking at ``target``; ``fov`` is horizontal; angles in radians."""
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
        """The same view with ``factor`` times as many samples; every ``factor``-th is a pixel centre."""
        width, height = self.size
        return Camera(
            self.position, self.rotation, self.focal * factor, self.center * factor, (width * factor, height * factor)
        )

    def intrinsics(self) -> np.ndarray:
        """Matrix (4, 4) from camera coordinates to pixels."""
        matrix = np.eye(4)
        matrix[0, 0] = matrix[1, 1] = self.focal
        matrix[:2, 2] = self.center
        return matrix

    def pose(self) -> np.ndarray:
        """Matrix (4, 4) from camera to world coordinates."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation.T, self.position
        return matrix


@dataclass(frozen=True)
class Lights:
    """Light of a room.

    Attributes:
        lamp: Position (3,) of the ceiling lamp, which casts shadows.
        lamp_color: Its RGB strength.
        window: Position (3,) of a second, soft light without shadows.
        window_color: Its RGB strength.
        ambient: RGB light from everywhere.
    """

    lamp: np.ndarray
    lamp_color: np.ndarray
    window: np.ndarray
    window_color: np.ndarray
    ambient: np.ndarray


class Scene:
    """Meshes gathered into arrays, ready to be rendered from any camera.

    Args:
        meshes: Pairs of a mesh in world coordinates and its value in the instance map, 0..65535.
        atlas: Textures, which the materials of the meshes refer to.
        lights: Light of the scene.
    """

    def __init__(self, meshes, atlas: Atlas, lights: Lights):
        faces = [(value, *face) for mesh, value in meshes for face in mesh.faces]
        self.values = np.array([face[0] for face in faces])
        owner = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh, _ in meshes])
        self.vertices_FK3 = _pad([face[1] for face in faces])
        self.atlas, self.lights = atlas, lights
        materials = [face[2] for face in faces]
        first, second, last = self.vertices_FK3[:, 0], self.vertices_FK3[:, 1], self.vertices_FK3[:, -1]
        self.normals_F3 = _unit(np.cross(last - first, second - first))

        u_axis = np.array([vertices[1] - vertices[0] if axis is None else axis for _, vertices, _, axis, _ in faces])
        u_F3 = _unit(u_axis)
        v_F3 = _unit(np.cross(u_F3, self.normals_F3))
        # Stretched textures end half a texel inside their border, where they would wrap around.
        margin = 0.5 / TEXTURE_SIZE
        repeat = np.array([material.scale or 0 for material in materials])
        tiled = repeat > 0
        axes, density = [], []
        for axis_F3 in (u_F3, v_F3):
            along = np.einsum('fkc,fc->fk', self.vertices_FK3, axis_F3)
            extent = np.where(tiled, repeat, np.ptp(along, 1) / (1 - 2 * margin))
            # Tiles run on over neighbouring faces of an object, and differ from one object to the next.
            offset = np.where(tiled, owner * 0.618 % 1, margin - along.min(1) / extent)
            axes += [*(axis_F3.T / extent), offset]
            density.append(TEXTURE_SIZE / extent)
            if axis_F3 is u_F3:
                slope = np.array([face[4] for face in faces]) * extent**2
                middle = (along.max(1) + along.min(1)) / 2 / extent + offset
        self.table = np.array([
            *self.normals_F3.T,
            *axes,
            slope,
            -slope * middle,
            np.sqrt(density[0] * density[1]),
            [atlas.column(material.texture) for material in materials],
            *np.array([material.color for material in materials]).T ** 2,
            [material.gloss for material in materials],
            [material.glow for material in materials],
        ], np.float32)  # fmt: skip

        casts = np.array([material.glow == 0 for material in materials])
        size = (_SHADOW_SIZE, _SHADOW_SIZE)
        down = Camera(lights.lamp, np.diag([1.0, -1, -1]), _SHADOW_SIZE / 2 / _SHADOW_SLOPE, np.divide(size, 2), size)
        self._lamp_camera, self._shadow_map = down, self._visible(down, casts)[1]

    def render(self, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Render one frame.

        Args:
            camera: Where from, and the image size (width, height).

        Returns:
            tuple: Linear RGB light (height, width, 3) float32, instance map (height, width) uint16 (0
            where nothing is seen) and depth in metres (height, width) float32 (0 where nothing is seen).
        """
        fine = camera.finer(SUPERSAMPLING)
        ids, inverse = self._visible(fine)
        light = np.empty((*ids.shape, 3), np.float32)
        rows = max(1, _BAND // ids.shape[1])
        for top in range(0, len(ids), rows):
            self._shade(fine, ids[top : top + rows], inverse[top : top + rows], top, light[top : top + rows])
        # A tent filter is centred on the samples that also give labels and depth.
        tent = np.array([1, 2, 1], np.float32) / 4
        color = cv2.sepFilter2D(light, -1, tent, tent)[::SUPERSAMPLING, ::SUPERSAMPLING]
        ids, inverse = ids[::SUPERSAMPLING, ::SUPERSAMPLING], inverse[::SUPERSAMPLING, ::SUPERSAMPLING]
        seen = ids >= 0
        instance = np.where(seen, self.values[ids], 0).astype(np.uint16)
        depth = np.divide(1, inverse, out=np.zeros_like(inverse), where=seen)
        color = color * _openness(inverse)[..., None]
        return color, instance, depth

    def _visible(self, camera, keep=True):
        """Index of the face that each sample sees (-1: none), and 1 / depth; both (height, width)."""
        distance = np.einsum('fc,fc->f', self.normals_F3, self.vertices_FK3[:, 0] - camera.position)
        chosen = np.flatnonzero((distance < -1e-6) & keep)
        vertices = (self.vertices_FK3[chosen] - camera.position) @ camera.rotation.T
        # A plane n . p = d is linear in image space: 1 / depth = n . (x, y, 1) / d.
        plane = self.normals_F3[chosen] @ camera.rotation.T / distance[chosen, None]
        return _rasterize(vertices, plane, chosen, camera)

    def _shade(self, camera, ids, inverse, top, light):
        """Write the light of a band of samples, whose first row is ``top``, to ``light`` (rows, width, 3)."""
        (nx, ny, nz, ux, uy, uz, u0, vx, vy, vz, v0, slope, middle, density, column,
         *color, gloss, glow) = self.table[:, ids]  # fmt: skip
        right, down, forward = camera.rotation.astype(np.float32)
        x = ((np.arange(ids.shape[1]) - camera.center[0]) / camera.focal).astype(np.float32)
        y = ((np.arange(top, top + len(ids)) - camera.center[1]) / camera.focal).astype(np.float32)[:, None]
        z = 1 / np.maximum(inverse, 1e-3)
        ray = [x * right[i] + y * down[i] + forward[i] for i in range(3)]
        px, py, pz = (np.float32(camera.position[i]) + z * ray[i] for i in range(3))
        away = 1 / np.sqrt(x * x + y * y + 1)
        ex, ey, ez = (-component * away for component in ray)

        u = px * ux + py * uy + pz * uz + u0
        v = px * vx + py * vy + pz * vz + v0
        facing = np.abs(nx * ex + ny * ey + nz * ez)
        texels = density * z / (camera.focal * np.sqrt(np.maximum(facing, 0.05)))
        texture = self.atlas.sample(u, v, column, texels)

        curve = slope * u + middle
        nx, ny, nz = nx + curve * ux, ny + curve * uy, nz + curve * uz
        length = 1 / np.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx * length, ny * length, nz * length

        def towards(position):
            lx, ly, lz = (np.float32(position[i]) - p for i, p in enumerate((px, py, pz)))
            square = lx * lx + ly * ly + lz * lz
            length = 1 / np.sqrt(square)
            return lx * length, ly * length, lz * length, 1 / (1 + 0.25 * square)

        lx, ly, lz, near = towards(self.lights.lamp)
        lamp = near * self._lit(px + 0.03 * nx, py + 0.03 * ny, pz + 0.03 * nz)
        hx, hy, hz = lx + ex, ly + ey, lz + ez
        half = np.maximum(nx * hx + ny * hy + nz * hz, 0) ** 2 / (hx * hx + hy * hy + hz * hz)
        highlight = gloss * lamp * half**16
        lamp *= np.maximum(nx * lx + ny * ly + nz * lz, 0)
        wx, wy, wz, near = towards(self.lights.window)
        window = near * np.maximum(nx * wx + ny * wy + nz * wz + 0.4, 0)
        sky = 0.8 + 0.2 * nz
        seen = ids >= 0
        for channel in range(3):
            total = (
                np.float32(self.lights.lamp_color[channel]) * lamp
                + np.float32(self.lights.window_color[channel]) * window
                + np.float32(self.lights.ambient[channel]) * sky
                + glow
            )
            albedo = texture[..., channel] * color[channel]
            light[..., channel] = (albedo * total + np.float32(self.lights.lamp_color[channel]) * highlight) * seen

    def _lit(self, px, py, pz):
        """Share of the lamp, 0..1, that reaches each point."""
        camera = self._lamp_camera
        below = np.float32(camera.position[2]) - pz
        outside = below < 0.1
        below = np.maximum(below, 0.1)
        x = (px - np.float32(camera.position[0])) * (camera.focal / below) + np.float32(camera.center[0])
        y = (np.float32(camera.position[1]) - py) * (camera.focal / below) + np.float32(camera.center[1])
        inverse = 1.005 / below
        lit = np.zeros_like(x)
        for dx, dy in _SHADOW_TAPS:
            nearest = cv2.remap(
                self._shadow_map, x + np.float32(dx), y + np.float32(dy), cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT, borderValue=0,
            )  # fmt: skip
            lit += nearest < inverse
        return np.where(outside, 1, lit / len(_SHADOW_TAPS)).astype(np.float32)


def _openness(inverse):
    """Share of the light from all around, which corners and gaps get less of, (height, width).

    Inverse depth is linear over a plane, so its local mean differs from it at edges only: it is larger
    where the surroundings are nearer.
    """
    mean = cv2.GaussianBlur(inverse, (0, 0), inverse.shape[1] / 50)
    nearer = np.maximum(mean / np.maximum(inverse, 1e-3) - 1, 0)
    # Less again for what is far behind its surroundings: it is not in their shade.
    return 1 - 3 * nearer * np.exp(-6 * nearer)


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _pad(polygons):
    """Array (F, K, 3): each polygon with its last vertex repeated up to the largest one's count."""
    most = max(map(len, polygons))
    return np.stack([np.concatenate([p, np.repeat(p[-1:], most - len(p), 0)]) for p in polygons])


def _clip_near(polygon):
    """The part (k, 3) of a convex polygon in camera coordinates that lies beyond the near plane."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept)


def _rasterize(vertices_FK3, plane_F3, names, camera):
    """Draw convex polygons, given in camera coordinates and clockwise in the image, into a depth buffer.

    Args:
        vertices_FK3: Polygons.
        plane_F3: Vectors n / d of their planes n . p = d.
        names: What to write for each polygon (F,).
        camera: Focal length, centre and size of the image.

    Returns:
        tuple: int32 name of the nearest polygon (-1: none), and float32 inverse depth (0: none).
    """
    width, height = camera.size
    ids = np.full((height, width), -1, np.int32)
    nearest = np.zeros((height, width), np.float32)
    reach = vertices_FK3[..., 2]
    inside = np.flatnonzero(reach.max(1) > NEAR)
    polygons = [vertices_FK3[i] if reach[i].min() >= NEAR else _clip_near(vertices_FK3[i]) for i in inside]
    if not polygons:
        return ids, nearest
    vertices_FK3, plane_F3, names = _pad(polygons), plane_F3[inside], names[inside]
    points = vertices_FK3[..., :2] / vertices_FK3[..., 2:] * camera.focal + camera.center

    # Edge i -> j bounds x from below or above: x = intercept + slope * y.
    x, y = points[..., 0], points[..., 1]
    dx, dy = np.roll(x, -1, 1) - x, np.roll(y, -1, 1) - y
    rising, falling = dy < -1e-9, dy > 1e-9
    slope = np.divide(dx, dy, out=np.zeros_like(dx), where=rising | falling)
    intercept = x - slope * y
    # A thousandth of a sample more, so that rounding opens no cracks between neighbours.
    left = np.where(rising, intercept, -np.inf) - 1e-3
    right = np.where(falling, intercept, np.inf) + 1e-3
    low = np.maximum(np.ceil(points.min(1) - 1e-3), 0)
    high = np.minimum(np.floor(points.max(1) + 1e-3), (width - 1, height - 1))
    drawn = np.flatnonzero((low <= high).all(1) & np.isfinite(points).all((1, 2)))
    low, high = low.astype(int), high.astype(int) + 1
    gradient = plane_F3[:, :2] / camera.focal
    constant = plane_F3[:, 2] - gradient @ camera.center
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    for i in drawn:
        (x0, y0), (x1, y1) = low[i], high[i]
        row, column = rows[y0:y1, None], columns[x0:x1]
        start = (left[i] + slope[i] * row).max(1).astype(np.float32)[:, None]
        end = (right[i] + slope[i] * row).min(1).astype(np.float32)[:, None]
        inverse = np.float32(gradient[i, 0]) * column + (gradient[i, 1] * row + constant[i]).astype(np.float32)
        window = nearest[y0:y1, x0:x1]
        front = (column >= start) & (column <= end) & (inverse > window)
        np.copyto(window, inverse, where=front)
        np.copyto(ids[y0:y1, x0:x1], names[i], where=front)
    return ids, nearest
