"""Find images with more than 8 bits a channel that the pipeline of a data set would cut to 8."""

import io

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import get
from torch.utils.data import Dataset

from deit_detr.images import DEEP, ImageFileError, open_image, pixel_problem


def find_deep_images(dataset: Dataset, number: int = 64) -> str | None:
    """Return a sentence about images whose pixels do not fit into the 8 bits that mmcv's loading step keeps.

    Args:
        dataset: A data set of images in files. One with another loading step, or with
            ``LoadImageFromFile(color_type='unchanged')``, has no such images: it reads all bits.
        number: About how many headers are read, of images at equal distances.

    Returns:
        str | None: How many images of the sample these are, the first one, and what to do; None if there are none.
    """
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    reader = next((step for step in steps if type(step) is LoadImageFromFile), None)
    if reader is None or reader.color_type == 'unchanged' or reader.imdecode_backend == 'tifffile' \
            or not hasattr(dataset, 'get_data_info'):
        return None
    sample = range(0, len(dataset), max(1, len(dataset) // number))
    found = []
    for path in (dataset.get_data_info(index)['img_path'] for index in sample):
        try:
            data = get(path, backend_args=reader.backend_args)
            try:
                with open_image(io.BytesIO(data), any_depth=True) as image:
                    problem = pixel_problem(image)
            except ImageFileError:  # OpenCV also reads JPEG 2000, AVIF, HDR ...
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
                problem = DEEP if image is not None and image.dtype != np.uint8 else None
            found += [f'{path}: {problem}'] if problem else []
        except Exception:  # of any storage or decoder: other checks name it
            continue
    return f'{len(found)} of a sample of {len(sample)}, e.g. {found[0]}' if found else None
