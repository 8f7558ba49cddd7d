"""XML formats: Pascal VOC and CVAT for images."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tqdm import tqdm

from deit_detr.datasets.formats.labels import (
    MISSING,
    SPLITS,
    Box,
    Folder,
    Labels,
    Picture,
    ellipse,
    from_sides,
    read_text,
    rectangle,
    turned,
)
from deit_detr.errors import UserError


def parse_xml(data: bytes) -> Element:
    """Return the root of an XML file that declares no entities: those could blow up or name other files.

    Raises:
        ValueError: If it declares some, or is damaged.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*declaration: object) -> None:
        raise ValueError('declares entities')

    parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from None
    return builder.close()


def _roots(folder: Folder, tag: str, labels: Labels) -> Iterator[tuple[Path, Element]]:
    """Yield the XML files with a root of this name."""
    for path in tqdm(folder.with_suffix('.xml'), 'label files', unit='file', delay=2):
        with labels.leaving_out('damaged label files', folder.name(path)):
            root = parse_xml(path.read_bytes())
            if root.tag == tag:
                yield path, root


def read_voc(folder: Folder) -> Labels | None:
    """Read Pascal VOC; None if there is no file of it.

    The splits are those of ``ImageSets/Main``, or folders. Corners count pixels from 1, as VOC defines them, unless one
    of the folder is below 1.
    """
    labels = Labels('Pascal VOC')
    files = list(_roots(folder, 'annotation', labels))
    if not files:
        return None
    lists = {line.split()[0]: path.stem for path in folder.with_suffix('.txt')
             if path.parent.parts[-2:] == ('ImageSets', 'Main') and path.stem in SPLITS
             for line in read_text(path).splitlines() if line.strip()}
    first = min((float(node.text) for _, root in files for node in root.iterfind('object/bndbox/*')
                 if node.tag in ('xmin', 'ymin') and _is_number(node.text)), default=1)
    shift = int(first >= 1)
    labels.notes.append('corners count pixels from 1, as VOC defines them: 1 is subtracted from xmin and ymin' if shift
                        else f'corners count from 0, unlike those of VOC: the smallest xmin or ymin is {first:g}')
    labels.list_classes(folder.class_list())
    crowds = 0
    for path, root in files:
        split = lists.get(path.stem) or folder.split_of(path, folders_only=True)
        name = root.findtext('filename') or ''
        image = (folder.find(path.stem + Path(name).suffix, path, split) or folder.find(name, path, split, loose=True)
                 or folder.find(f'{path.stem}.*', path, split))
        if image is None:
            labels.left_out[MISSING].append(folder.name(path))
            continue
        picture = Picture(image, split)
        with labels.leaving_out('malformed sizes', folder.name(path)):
            size = tuple(int(float(root.findtext(f'size/{side}') or 0)) for side in ('width', 'height'))
            picture.size = size if min(size) > 0 else None
        labels.pictures.append(picture)
        for node in root.iterfind('object'):
            with labels.leaving_out('malformed boxes', folder.name(path)):
                left, top, right, bottom = (
                    float(node.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax'))
                crowd = node.findtext('difficult', '0').strip() == '1'
                crowds += crowd
                points = from_sides(left - shift, top - shift, right - left + shift, bottom - top + shift)
                picture.boxes.append(Box(node.findtext('name').strip(), points, crowd=crowd))
    if crowds:
        labels.notes.append(f'{crowds} boxes marked "difficult" are regions to ignore ("iscrowd"), as in VOC')
    return labels


def _is_number(text: str | None) -> bool:
    try:
        return float(text or '') > -1e9
    except ValueError:
        return False


def read_cvat(folder: Folder) -> Labels | None:
    """Read "CVAT for images"; None if there is no file of it. Classes are listed in the order of the task."""
    labels = Labels('CVAT for images')
    files = list(_roots(folder, 'annotations', labels))
    if not files:
        return None
    for path, root in files:
        if root.find('track') is not None:
            raise UserError(f'{path}: "CVAT for video": export the task as "CVAT for images 1.1", with its images')
        labels.list_classes(node.text.strip() for node in root.iterfind('meta//label/name') if node.text)
        for node in root.iterfind('image'):
            with labels.leaving_out('malformed images', f'{folder.name(path)}: {node.get("name")}'):
                split = folder.split_of(folder.root / (node.get('subset') or folder.name(path)))
                image = folder.find(node.attrib['name'], path, split)
                if image is None:
                    labels.left_out[MISSING].append(node.attrib['name'])
                    continue
                split = split or folder.split_of(image, folders_only=True)
                picture = Picture(image, split, size=(int(node.attrib['width']), int(node.attrib['height'])))
                labels.pictures.append(picture)
                for shape in node:
                    with labels.leaving_out('malformed boxes', node.attrib['name']):
                        points = _cvat_points(shape.tag, shape.attrib)
                        if points:
                            picture.boxes.append(Box(shape.attrib['label'], points))
                        else:
                            labels.left_out[f'shapes without a box ({shape.tag})'].append(node.attrib['name'])
    return labels


def _cvat_points(kind: str, shape: dict[str, str]) -> list[tuple[float, float]]:
    """Return the points around a shape; [] if it is a line, a point or a tag of the image."""
    angle = float(shape.get('rotation', 0))
    if kind == 'box':
        left, top, right, bottom = (float(shape[name]) for name in ('xtl', 'ytl', 'xbr', 'ybr'))
        corners = from_sides(left, top, right - left, bottom - top)
        return turned(rectangle(corners), ((left + right) / 2, (top + bottom) / 2), angle) if angle else corners
    if kind == 'mask':
        return from_sides(*(shape[name] for name in ('left', 'top', 'width', 'height')))
    if kind == 'ellipse':
        return ellipse(*(float(shape[name]) for name in ('cx', 'cy', 'rx', 'ry')), angle)
    if kind == 'polygon':
        return [tuple(map(float, point.split(','))) for point in shape['points'].split(';')]
    return []
