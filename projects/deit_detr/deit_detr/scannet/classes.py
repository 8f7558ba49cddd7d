"""The ScanNet class table: names, NYU40 ids, order and colours.

ScanNet frames are labelled with NYU40 ids, of which the detection benchmark keeps 20. The 18-class protocol of Pri3D
(arXiv 2104.11225) leaves out wall and floor.
"""

#: (name, NYU40 id, RGB colour in ScanNet's visualisations), in label order.
SCANNET_CLASSES = (
    ('wall', 1, (174, 199, 232)),
    ('floor', 2, (152, 223, 138)),
    ('cabinet', 3, (31, 119, 180)),
    ('bed', 4, (255, 187, 120)),
    ('chair', 5, (188, 189, 34)),
    ('sofa', 6, (140, 86, 75)),
    ('table', 7, (255, 152, 150)),
    ('door', 8, (214, 39, 40)),
    ('window', 9, (197, 176, 213)),
    ('bookshelf', 10, (148, 103, 189)),
    ('picture', 11, (196, 156, 148)),
    ('counter', 12, (23, 190, 207)),
    ('desk', 14, (247, 182, 210)),
    ('curtain', 16, (219, 219, 141)),
    ('refrigerator', 24, (255, 127, 14)),
    ('shower curtain', 28, (158, 218, 229)),
    ('toilet', 33, (44, 160, 44)),
    ('sink', 34, (112, 128, 144)),
    ('bathtub', 36, (227, 119, 194)),
    ('otherfurniture', 39, (82, 84, 163)))

#: NYU40 ids of "stuff", one region per frame: instance maps hold the plain id, below 1000.
STUFF_IDS = (1, 2)


def scannet_metainfo(num_classes: int = 20) -> dict:
    """Return the meta information of a ScanNet protocol, as in mmdet's data sets.

    Args:
        num_classes: 20 for the whole table, 18 for the protocol without wall and floor.

    Returns:
        dict: ``classes`` (names), ``category_ids`` (NYU40 ids) and ``palette`` (RGB, 0..255), in label order.

    Raises:
        ValueError: If ``num_classes`` is neither 20 nor 18.
    """
    if num_classes not in (18, 20):
        raise ValueError(f'ScanNet detection has a 20-class and an 18-class protocol, not {num_classes!r}')
    table = [row for row in SCANNET_CLASSES if num_classes == 20 or row[1] not in STUFF_IDS]
    names, ids, palette = zip(*table, strict=True)
    return dict(classes=names, category_ids=ids, palette=list(palette))  # mmdet takes a tuple for a single colour
