"""YOLO folders: a text file of boxes for each image, and the classes in data.yaml, classes.txt or obj.names."""

from pathlib import Path, PurePosixPath

from tqdm import tqdm

from deit_detr.datasets.formats.labels import (
    MALFORMED,
    MISSING,
    SPLITS,
    Box,
    Folder,
    Labels,
    Picture,
    class_names,
    from_sides,
    read_text,
    read_yaml,
)
from deit_detr.errors import UserError


def read_yolo(folder: Folder) -> Labels | None:
    """Read a YOLO folder; None if it is not one. An image without a label file has no objects, as in Ultralytics."""
    source, names, config = _find_names(folder)
    if not names or not any(_label_file(folder, path) for path in folder.images):
        return None
    labels = Labels(f'YOLO ({source})', list(dict.fromkeys(names.values())))
    points = _keypoints(config)
    for path, split in tqdm(_images(folder, config, labels).items(), 'label files', unit='file', delay=2):
        picture = Picture(path, split, relative=True)
        labels.pictures.append(picture)
        file = _label_file(folder, path)
        for number, line in enumerate(read_text(file).splitlines() if file else [], 1):
            if line.strip():
                with labels.leaving_out('malformed lines', f'{folder.name(file)}:{number}'):
                    index, *values = map(float, line.split())
                    if index not in names:
                        labels.left_out['boxes of a class number that is not listed'].append(
                            f'{folder.name(file)}:{number}')
                        continue
                    picture.boxes.append(Box(names[int(index)], _points(values, points)))
    return labels


def _points(values: list[float], keypoints: int) -> list[tuple[float, float]]:
    """Return the corners of a box (centre and sides, perhaps with a score or keypoints behind), or a polygon."""
    if len(values) in (4, 5, 4 + keypoints):
        x, y, width, height = values[:4]
        return from_sides(x - width / 2, y - height / 2, width, height)
    if len(values) < 6 or len(values) % 2:
        raise ValueError('neither a box nor a polygon')
    return list(zip(values[::2], values[1::2], strict=True))


def _keypoints(config: dict) -> int:
    """Return how many numbers of keypoints stand behind a box."""
    try:
        number, each = config.get('kpt_shape', (0, 0))
        return int(number) * int(each)
    except MALFORMED:
        return 0


def _find_names(folder: Folder) -> tuple[str, dict[int, str], dict]:
    """Return the file that lists the classes, the classes by number, and the content of a YAML file."""
    files = folder.with_suffix('.yaml', '.yml')
    for path in sorted(files, key=lambda path: (len(path.parts), path.name != 'data.yaml', path.name)):
        config = read_yaml(read_text(path))
        if isinstance(config, dict) and config.get('names'):
            try:
                return folder.name(path), class_names(config['names']), dict(config, file=path)
            except MALFORMED:
                raise UserError(f'{path}: field "names" has to list the classes, or map numbers to them') from None
    for name in ('classes.txt', 'obj.names'):
        if names := {number: line for number, line in enumerate(folder.lines_of(name)) if line}:
            return name, names, {}
    return '', {}, {}


def _images(folder: Folder, config: dict, labels: Labels) -> dict[Path, str]:
    """Return the images and their splits: those of the YAML file, or all by their folders."""
    found: dict[Path, str] = {}
    for split in SPLITS:
        values = config.get(split) or (config.get('valid') if split == 'val' else None) or []
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str):
                raise UserError(f'{config["file"]}: field "{split}" has to be a folder, or a list of folders')
            place = _place(folder, config, value)
            if place is None:
                labels.notes.append(f'{folder.name(config["file"])} names {split}: {value}, which is not in the folder')
                continue
            if place in folder:  # a list of images
                lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
                paths = {line: folder.find(line, place, split, loose=True) for line in lines}
                labels.left_out[MISSING] += [
                    line for line in lines if not paths[line]]
                of_split = list(filter(None, paths.values()))
            else:
                of_split = [path for path in folder.images if place in path.parents]
            if both := sum(found.get(path, split) != split for path in of_split):
                labels.notes.append(f'{folder.name(config["file"])}: {both} images of {split} are also in another '
                                    'split, where they stay')
            found.update({path: split for path in of_split if path not in found})
    return found or {path: folder.split_of(path, folders_only=True) for path in folder.images}


def _place(folder: Folder, config: dict, value: str) -> Path | None:
    """Return the folder or list in ``folder`` that a YAML file means: its paths are often those of another machine."""
    def parts(text: str) -> list[str]:
        return [part for part in PurePosixPath(text.replace('\\', '/')).parts if part not in ('/', '.', '..')]

    path = config.get('path')
    base, own = parts(path if isinstance(path, str) else ''), parts(value)
    most = len(own) - (2 if own[-1:] == ['images'] else 1) if value.startswith('/') else 0
    for start in range(len(base) + max(most, 0) + 1):
        for root in (config['file'].parent, folder.root):
            place = root.joinpath(*[*base, *own][start:])
            if place in folder or place.is_dir():
                return place
    return None


def _label_file(folder: Folder, image: Path) -> Path | None:
    """Return the label file of an image: in ``labels`` in place of the last ``images``, or beside it."""
    parts = image.relative_to(folder.root).with_suffix('.txt').parts
    places = [folder.root.joinpath(*parts[:i], 'labels', *parts[i + 1:])
              for i in reversed(range(len(parts) - 1)) if parts[i] == 'images'][:1]
    return next((place for place in [*places, image.with_suffix('.txt')] if place in folder), None)
