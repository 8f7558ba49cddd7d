"""A small software renderer: convex faces, one depth buffer, textured and lit per pixel.

Visibility comes first (which face does each sample see, and how far away is it), then every sample is textured and lit
at once, so that the cost of shading does not depend on the number of faces. ``geometry`` says what the coordinates are.
Shape suffixes: F faces, K vertices of the largest face.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from deit_detr.scannet.mini_scannet.geometry import Camera, Mesh
from deit_detr.scannet.mini_scannet.textures import TEXTURE_SIZE, Atlas

#: Colour samples per pixel and axis. Every second sample lies on a pixel centre: labels and depth use it.
SUPERSAMPLING = 2
NEAR = 0.05
_BAND = 1 << 17  # samples shaded at a time, to stay within the processor's cache
_SHADOW_SIZE = 512
_SHADOW_SLOPE = 2.5  # tangent of half the opening angle of the lamp's view of the room
_SHADOW_TAPS = ((-1.6, -0.6), (0.6, -1.6), (1.6, 0.6), (-0.6, 1.6))


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
        atlas: Textures that the materials of the meshes name.
        lights: Light of the scene.
    """

    def __init__(self, meshes: Sequence[tuple[Mesh, int]], atlas: Atlas, lights: Lights):
        faces = [face for mesh, _ in meshes for face in mesh.faces]
        owner = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh, _ in meshes])
        self.values = np.array([value for _, value in meshes])[owner]
        self.vertices_FK3 = _pad([face.vertices for face in faces])
        self.atlas, self.lights = atlas, lights
        materials = [face.material for face in faces]
        first, second, last = self.vertices_FK3[:, 0], self.vertices_FK3[:, 1], self.vertices_FK3[:, -1]
        self.normals_F3 = _unit(np.cross(last - first, second - first))

        u_F3 = _unit(np.array([f.vertices[1] - f.vertices[0] if f.u_axis is None else f.u_axis for f in faces]))
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
                slope = np.array([face.bend for face in faces]) * extent**2
                middle = (along.max(1) + along.min(1)) / 2 / extent + offset
        self.table = np.array([
            *self.normals_F3.T, *axes, slope, -slope * middle, np.sqrt(density[0] * density[1]),
            [atlas.column(material.texture) for material in materials],
            *np.array([material.color for material in materials]).T ** 2,
            [material.gloss for material in materials], [material.glow for material in materials]], np.float32)

        casts = np.array([material.glow == 0 for material in materials])
        size = (_SHADOW_SIZE, _SHADOW_SIZE)
        down = Camera(lights.lamp, np.diag([1.0, -1, -1]), _SHADOW_SIZE / 2 / _SHADOW_SLOPE, np.divide(size, 2), size)
        self._lamp_camera, self._shadow_map = down, self._visible(down, casts)[1]

    def render(self, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Render one frame.

        Args:
            camera: The view and the image size.

        Returns:
            tuple: Linear RGB light (height, width, 3) float32, instance map (height, width) uint16 and depth in metres
            (height, width) float32. All are 0 where nothing is seen.
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

    def _visible(self, camera: Camera, keep: np.ndarray | bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the index of the face that each sample sees (-1: none), and 1 / depth; both (height, width)."""
        distance = np.einsum('fc,fc->f', self.normals_F3, self.vertices_FK3[:, 0] - camera.position)
        chosen = np.flatnonzero((distance < -1e-6) & keep)
        vertices = (self.vertices_FK3[chosen] - camera.position) @ camera.rotation.T
        # A plane n . p = d is linear in image space: 1 / depth = n . (x, y, 1) / d.
        plane = self.normals_F3[chosen] @ camera.rotation.T / distance[chosen, None]
        return _rasterize(vertices, plane, chosen, camera)

    def _shade(self, camera: Camera, ids: np.ndarray, inverse: np.ndarray, top: int, light: np.ndarray) -> None:
        """Write the light of a band of samples, whose first row is ``top``, to ``light`` (rows, width, 3)."""
        nx, ny, nz, *axes, slope, middle, density, column, red, green, blue, gloss, glow = self.table[:, ids]
        ux, uy, uz, u0, vx, vy, vz, v0 = axes
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

        def towards(position: np.ndarray) -> tuple[np.ndarray, ...]:
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
        strengths = np.stack([self.lights.lamp_color, self.lights.window_color, self.lights.ambient], 1)
        for channel, (color, strength) in enumerate(zip((red, green, blue), strengths.astype(np.float32), strict=True)):
            total = strength[0] * lamp + strength[1] * window + strength[2] * sky + glow
            light[..., channel] = (texture[..., channel] * color * total + strength[0] * highlight) * seen

    def _lit(self, px: np.ndarray, py: np.ndarray, pz: np.ndarray) -> np.ndarray:
        """Return the share of the lamp's light, 0..1, that reaches each point."""
        camera = self._lamp_camera
        below = np.float32(camera.position[2]) - pz
        outside = below < 0.1
        below = np.maximum(below, 0.1)
        x = (px - np.float32(camera.position[0])) * (camera.focal / below) + np.float32(camera.center[0])
        y = (np.float32(camera.position[1]) - py) * (camera.focal / below) + np.float32(camera.center[1])
        inverse = 1.005 / below
        lit = np.zeros_like(x)
        for dx, dy in _SHADOW_TAPS:
            # Outside the map this reads 0, which is no obstacle.
            nearest = cv2.remap(self._shadow_map, x + np.float32(dx), y + np.float32(dy), cv2.INTER_LINEAR)
            lit += nearest < inverse
        return np.where(outside, 1, lit / len(_SHADOW_TAPS)).astype(np.float32)


def _openness(inverse: np.ndarray) -> np.ndarray:
    """Return the share of the ambient light that reaches each pixel, less in corners and gaps, (height, width).

    Inverse depth is linear over a plane, so its local mean differs from it at edges only: it is larger where the
    surroundings are nearer.
    """
    mean = cv2.GaussianBlur(inverse, (0, 0), inverse.shape[1] / 50)
    nearer = np.maximum(mean / np.maximum(inverse, 1e-3) - 1, 0)
    # What is far behind its surroundings is not in their shade.
    return 1 - 3 * nearer * np.exp(-6 * nearer)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _pad(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return polygons (k, 3) as one array (F, K, 3), the last vertex of each repeated until there are K."""
    most = max(map(len, polygons))
    return np.stack([np.concatenate([p, np.repeat(p[-1:], most - len(p), 0)]) for p in polygons])


def _clip_near(polygon: np.ndarray) -> np.ndarray:
    """Return the part (k, 3) of a convex polygon in camera coordinates that lies beyond the near plane."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept)


def _rasterize(
    vertices_FK3: np.ndarray, plane_F3: np.ndarray, names: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Draw convex polygons into a depth buffer.

    Args:
        vertices_FK3: Polygons in camera coordinates, clockwise in the image.
        plane_F3: Vectors n / d of their planes n . p = d.
        names: Integers (F,) to write where a polygon is seen.
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
