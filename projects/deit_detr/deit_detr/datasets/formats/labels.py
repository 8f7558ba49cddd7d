"""The form between a labelling format and COCO: a folder's files, its images, and their boxes by class name."""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml
from tqdm import tqdm

from deit_detr.errors import UserError

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIXES = frozenset(['.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.ppm', '.pgm'])
#: Why an image that a label file names is left out.
MISSING = 'images missing, or several of this name'
#: The largest YAML file that is read: a list of classes is far smaller.
MAX_YAML = 1_000_000
#: What malformed content raises when a reader takes it apart.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_SPLIT = re.compile(r'(?<![a-z])(?:(train)(?:ing)?|(val)(?:id|idation)?|dev|(test)(?:ing)?)(?![a-z])')


@dataclass
class Box:
    """An object of an image.

    Attributes:
        label: Name of its class.
        points: Points that it encloses, (x, y) from the top left corner of the image, in pixels; shares of width and
            height if the image is ``relative``.
        area: In square pixels. Default: that of the rectangle.
        crowd: Whether it is a region to ignore.
    """

    label: str
    points: list[tuple[float, float]]
    area: float | None = None
    crowd: bool = False


@dataclass
class Picture:
    """A labelled image.

    Attributes:
        path: The file.
        split: 'train', 'val', 'test', or '' if the format does not say.
        boxes: Its objects.
        size: Width and height that it was labelled in, if the format says so.
        relative: Whether points are shares of width and height.
    """

    path: Path
    split: str
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    relative: bool = False


@dataclass
class Labels:
    """The content of a folder.

    Attributes:
        kind: Name of the format.
        classes: Names that the format lists, in order. Other names of boxes are put behind them.
        pictures: The labelled images.
        left_out: What is not converted, by reason.
        notes: Peculiarities that change nothing.
    """

    kind: str
    classes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def leaving_out(self, reason: str, what: object) -> Iterator[None]:
        """Leave something out if the block cannot make sense of it."""
        try:
            yield
        except MALFORMED:
            self.left_out[reason].append(str(what))

    def list_classes(self, names: Iterable[str]) -> None:
        """Add names to the classes that are listed."""
        self.classes = list(dict.fromkeys([*self.classes, *names]))


class Folder:
    """The files of a folder, without hidden ones, pipes and devices, and without the folder of the results.

    Args:
        root: The folder.
        skip: A folder in it that is left out.

    Raises:
        UserError: If there is no such folder.
        OSError: If it cannot be read. Folders in it that cannot be read are listed in ``unreadable``.
    """

    def __init__(self, root: Path, skip: Path | None = None) -> None:
        if not root.is_dir():
            raise UserError(f'{root}: {"a file, not" if root.exists() else "no such"} folder; give the folder that '
                            'holds images and labels, unpacked')
        self.root = root
        self.files: list[Path] = []
        self.unreadable: list[str] = []

        def failed(error: OSError) -> None:
            if Path(error.filename) == root:
                raise error
            self.unreadable.append(self.name(Path(error.filename)))

        seen = {os.path.realpath(skip)} if skip else set()
        for folder, folders, names in os.walk(root, onerror=failed, followlinks=True):  # images are often linked
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else sorted(n for n in folders if not n.startswith(('.', '__MACOSX')))
            if real not in seen:
                paths = [Path(folder, name) for name in sorted(names) if not name.startswith('.')]
                self.files += [path for path in paths if path.is_file()]  # a pipe would keep a reader waiting
            seen.add(real)
        self.images = [path for path in self.files if path.suffix.lower() in IMAGE_SUFFIXES]
        self._known = set(self.files)
        self._by_tail: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            parts = path.relative_to(root).parts
            for start in range(len(parts)):
                self._by_tail['/'.join(parts[start:])].append(path)
            self._by_tail[f'{path.stem}.*'].append(path)

    def __contains__(self, path: Path) -> bool:
        return path in self._known

    def name(self, path: Path) -> str:
        """Return the name of a file below the folder."""
        return path.relative_to(self.root).as_posix()

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the files with one of some endings, lower case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def split_of(self, path: Path, folders_only: bool = False) -> str:
        """Return the split that the name of a file says, or ''. The last folder that names one counts."""
        path = path.relative_to(self.root)
        text = (path.parent if folders_only else path.with_suffix('')).as_posix().lower()
        found = ''
        for match in _SPLIT.finditer(text):
            found = match.group(1) or match.group(2) or match.group(3) or 'val'
        return found

    def find(self, name: str, near: Path, split: str = '', loose: bool = False) -> Path | None:
        """Return the image that a label file names; None if there is none, or more than one that fits equally.

        Only images of the folder are found, whatever the name is.

        Args:
            name: Name of the image, perhaps with folders; ``.*`` stands for any ending.
            near: The label file.
            split: The split of the label file.
            loose: Whether the folders of the name may be those of another machine, as those of an absolute name.
        """
        parts = [part for part in PurePosixPath(name.replace('\\', '/')).parts if part not in ('/', '.')]
        loose = loose or '..' in parts or ':' in name or name.startswith('/')
        tails = ['/'.join(parts[start:]) for start in range(len(parts) if loose else 1)]
        hits = next((self._by_tail[tail] for tail in tails if tail in self._by_tail), [])

        def rank(path: Path) -> tuple[bool, int]:
            near_parts = len(Path(os.path.commonpath([path, near])).parts)
            return self.split_of(path, folders_only=True) == split, near_parts

        ranked = sorted(hits, key=rank)
        unique = len(ranked) == 1 or len(ranked) > 1 and rank(ranked[-1]) > rank(ranked[-2])
        return ranked[-1] if unique else None

    def lines_of(self, *names: str) -> list[str]:
        """Return the lines of the file nearest to the root that has one of some names; [] if there is none."""
        for path in sorted(self.files, key=lambda path: len(path.parts)):
            if path.name in names:
                return [line.strip() for line in read_text(path).splitlines()]
        return []

    def class_list(self) -> list[str]:
        """Return the classes in ``labels.txt`` or ``classes.txt``, without labelme's ``__ignore__`` and background."""
        return [line for line in self.lines_of('labels.txt', 'classes.txt')
                if line and not line.startswith('__') and line != '_background_']

    def json_files(self) -> dict[Path, object]:
        """Return the content of the JSON files; None for those that are damaged. Images inside are dropped."""
        if not hasattr(self, '_json'):
            self._json = {}
            for path in tqdm(self.with_suffix('.json'), 'label files', unit='file', delay=2):
                try:
                    content = json.loads(path.read_bytes())
                except (ValueError, RecursionError):
                    content = None
                if isinstance(content, dict):
                    content.pop('imageData', None)
                self._json[path] = content
        return self._json


def read_text(path: Path) -> str:
    """Return a text; what is not UTF-8 in it becomes U+FFFD."""
    return path.read_text(encoding='utf-8-sig', errors='replace')


def read_yaml(text: str) -> object:
    """Return the content of a YAML text, plain data only; None if it is damaged or too large."""
    try:
        return yaml.safe_load(text) if len(text) <= MAX_YAML else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def class_names(value: object) -> dict[int, str]:
    """Return the names of a list, or of a mapping from numbers, by their numbers.

    Raises:
        ValueError: If it is something else, or names are neither texts nor numbers.
    """
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    names = {int(key): name for key, name in pairs}
    if not all(isinstance(name, (str, int, float)) for name in names.values()):
        raise ValueError('names have to be texts')
    return {key: str(names[key]).strip() for key in sorted(names)}


def from_sides(left: float, top: float, width: float, height: float) -> list[tuple[float, float]]:
    """Return two corners of a box.

    Raises:
        ValueError: If its width or height is negative.
    """
    left, top, width, height = map(float, (left, top, width, height))
    if width < 0 or height < 0:
        raise ValueError('negative side')
    return [(left, top), (left + width, top + height)]


def turned(points: list[tuple[float, float]], centre: tuple[float, float], degrees: float) -> list:
    """Return points turned clockwise, as seen in the image, around a centre."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = centre
    return [(x + (a - x) * cosine - (b - y) * sine, y + (a - x) * sine + (b - y) * cosine) for a, b in points]


def rectangle(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the four corners of a box of two."""
    (left, top), (right, bottom) = points
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ellipse(x: float, y: float, a: float, b: float, degrees: float = 0) -> list[tuple[float, float]]:
    """Return the corners of the box around an ellipse with a centre and half axes, turned clockwise."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    half = math.hypot(a * cosine, b * sine), math.hypot(a * sine, b * cosine)
    return [(x - half[0], y - half[1]), (x + half[0], y + half[1])]
