"""A trained detector in five lines: load it, call it on images, draw what it found."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from mmdet.apis import DetInferencer
from mmdet.datasets.transforms import InferencerLoader
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from PIL import Image, ImageOps
from torch import nn

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.images import MAX_PIXELS, PROGRAMS, ImageFileError, decoding, open_image

#: A file, an 8-bit array as OpenCV has it (BGR), or a PIL image.
ImageInput = str | Path | np.ndarray | Image.Image
#: Images with a longer side than this many times the other are refused: resized, less than a patch is left of one side.
MAX_ASPECT = 20


def load(config: str | Path | Config, checkpoint: str | Path, device: str | None = None) -> 'Detector':
    """Load a trained detector.

    Example::

        import deit_detr

        detector = deit_detr.load('config.py', 'epoch_150.pth')
        found = detector('room.jpg').pred_instances
        print(found.label_names, found.scores, found.bboxes)

    Args:
        config: Config file, or what ``Config.fromfile`` made of it.
        checkpoint: Its checkpoint, a ``.pth`` or ``.safetensors`` file, read without running code from it.
        device: E.g. ``'cpu'`` or ``'cuda:1'``; the GPU when left out and there is one.

    Returns:
        Detector: Ready to be called, see :class:`Detector`.

    Raises:
        UserError: If a file is missing, or checkpoint and config do not belong together.
    """
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise UserError(f'{config}: no such config file')
        config = Config.fromfile(config)
    missing = [field for field in ('model', 'test_dataloader') if field not in config]
    if missing:
        raise UserError(f'{config.filename}: has no {" and no ".join(missing)}: it is only a part of a config. Name '
                        'the recipe, or the resolved config in its work directory')
    return Detector(config, str(checkpoint), device)


class Detector(DetInferencer):
    """mmdet's ``DetInferencer`` that asks for nothing, writes nothing and loads all or nothing.

    What differs: the checkpoint has to fit the config tensor by tensor, class by class; PIL images and paths are taken
    as well; calling it gives ``DetDataSample`` objects instead of a dict; no progress bar, no backends that write.

    Args:
        config (Config): Config with ``model`` and ``test_dataloader``, whose pipeline prepares the images.
        checkpoint (str): Checkpoint file.
        device (str, optional): The device; the GPU when left out and there is one.

    Raises:
        UserError: If the checkpoint cannot be used with this config, or the device cannot be used.
    """

    def __init__(self, config: Config, checkpoint: str, device: str | None = None) -> None:
        super().__init__(config, checkpoint, device, show_progress=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self.model.dataset_meta['classes'])

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], score_thr: float = 0.3, batch_size: int = 1,
    ) -> DetDataSample | list[DetDataSample]:
        """Detect objects.

        Args:
            images: One image or a list of them: paths, 8-bit arrays in OpenCV's channel order (``(height, width)``
                grey, ``(height, width, 3)`` BGR or ``(height, width, 4)`` BGRA), or PIL images of any mode. Files and
                PIL images are turned as their EXIF orientation says. Transparency is dropped.
            score_thr: Leave out detections with a lower score, in 0..1; 0 keeps all that the model gives.
            batch_size: Images at a time. Images of different sizes are padded to the largest of their batch, which
                changes results a little: 1 gives what the evaluation gives.

        Returns:
            DetDataSample | list[DetDataSample]: One for each image, on the CPU. Its ``pred_instances`` have ``bboxes``
            (x1, y1, x2, y2 in pixels of the image as given), ``scores``, ``labels`` and ``label_names``, best first.

        Raises:
            UserError: If an image cannot be read, or is not an image.
        """
        many = isinstance(images, (list, tuple))
        images = list(images) if many else [images]
        try:
            with _quiet():
                samples = super().__call__(images, batch_size, return_datasamples=True)['predictions']
        except RuntimeError as error:
            if 'selected index k out of range' not in str(error):
                raise
            raise UserError(
                'an image has so different sides that it has fewer patches than the model has queries once it is '
                'resized. Cut it into pieces') from None
        results = []
        for image, sample in zip(images, samples, strict=True):
            found = sample.pred_instances.cpu()
            found = found[found.scores >= score_thr]
            found.label_names = [self.classes[label] for label in found.labels]
            path = str(image) if isinstance(image, (str, Path)) else None
            # without the ground truth of the test pipeline, which is empty here
            results.append(DetDataSample(metainfo=sample.metainfo | dict(img_path=path), pred_instances=found))
        return results if many else results[0]

    def draw(self, image: ImageInput, sample: DetDataSample) -> Image.Image:
        """Draw detections with mmdet's visualizer, each class in the colour that its data set gives it.

        Labels have a size of their own: an image below 600 pixels is enlarged, so that they do not hide it.

        Args:
            image: The image that the sample was detected in.
            sample: From calling the detector.

        Returns:
            Image.Image: RGB; ``.save('found.jpg')`` writes it. A whole multiple of the image's size.
        """
        picture = self.read(image)[..., ::-1]
        scale = max(1, round(900 / max(picture.shape)))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        found = sample.pred_instances[sample.pred_instances.scores.argsort()]  # the best on top
        found.bboxes = found.bboxes * scale
        dpi = 0.13 * max(1000, *picture.shape)
        self.visualizer.dpi = dpi
        self.visualizer.fig_save.set_dpi(dpi)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.* out of bounds')  # a box that touches the border
            self.visualizer.add_datasample(
                'detections', picture, DetDataSample(pred_instances=found), draw_gt=False, pred_score_thr=-1)
        return Image.fromarray(self.visualizer.get_image())

    def read(self, image: ImageInput) -> np.ndarray:
        """Bring an image into mmdet's form: uint8, ``(height, width, 3)``, BGR.

        Files are read by the loading step of the config's test pipeline, so that they are what they are in evaluation.

        Args:
            image: See :meth:`__call__`.

        Returns:
            np.ndarray: The image.

        Raises:
            UserError: If it cannot be read, or is not an 8-bit image.
        """
        array = self._read_any(image)
        sides = sorted(array.shape[:2])
        if sides[1] > MAX_ASPECT * sides[0]:
            raise UserError(f'an image of {array.shape[1]}x{array.shape[0]} pixels: one side is more than {MAX_ASPECT} '
                            'times the other, too little of it is left when it is resized. Cut it into pieces')
        return array

    def _read_any(self, image: ImageInput) -> np.ndarray:
        if isinstance(image, (str, Path)):
            return self._read_file(Path(image))
        if isinstance(image, Image.Image):
            if image.mode.startswith(('I', 'F')):
                raise UserError(f'a PIL image of mode {image.mode}: convert it to 8 bits a channel first')
            if image.format in PROGRAMS:
                raise UserError(f'a PIL image from a file in {image.format} format: decoding it would run a program')
            if not 0 < image.width * image.height <= MAX_PIXELS:
                raise UserError(f'a PIL image of {image.width}x{image.height} pixels: between 1 and {MAX_PIXELS} of '
                                'them are needed')
            try:
                with decoding():
                    image = ImageOps.exif_transpose(image).convert('RGB')
            except (OSError, ImageFileError) as error:  # files are decoded when they are needed
                raise UserError(f'a PIL image cannot be decoded ({error})') from None
            return np.ascontiguousarray(np.asarray(image)[..., ::-1])
        if not isinstance(image, np.ndarray):
            raise UserError(f'an image is a path, a NumPy array or a PIL image, not a {type(image).__name__}')
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)) \
                or not 0 < image.size <= 4 * MAX_PIXELS:
            raise UserError(
                f'an array of {image.dtype} and shape {image.shape} is no image: uint8 is needed, (height, width), '
                '(height, width, 3) in BGR order or (height, width, 4) in BGRA order')
        if image.ndim == 2 or image.shape[2] == 1:
            return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return np.ascontiguousarray(image[..., :3])

    def _read_file(self, path: Path) -> np.ndarray:
        if path.is_dir():
            raise UserError(f'{path}: is a folder. Give a list of its images')
        if not path.is_file():
            raise UserError(f'{path}: no such image file')
        try:
            open_image(path).close()  # OpenCV would decode an image of any size
            return self._load_file(dict(img_path=str(path)))['img']
        except (AssertionError, ValueError, OSError, cv2.error) as error:
            raise UserError(f'{path}: cannot be read as an image ({error or "damaged or of another format"})') from None

    def _init_pipeline(self, cfg: Config) -> Compose:
        pipeline = super()._init_pipeline(cfg)
        loader = next(step for step in pipeline.transforms if isinstance(step, InferencerLoader))
        self._load_file = loader.from_file
        pipeline.transforms.insert(0, lambda image: dict(img=self.read(image)))
        return pipeline

    def _init_collate(self, cfg: Config) -> Callable:
        return pseudo_collate  # what mmdet's look-up ends at, with a warning

    def _init_visualizer(self, cfg: Config) -> DetLocalVisualizer:
        visualizer = _Visualizer()  # not the config's, whose backends write files
        visualizer.dataset_meta = self.model.dataset_meta
        return visualizer

    def _init_model(self, cfg: Config, weights: str, device: str) -> nn.Module:
        checkpoint = load_checkpoint_file(weights)
        model = MODELS.build(cfg.model)
        _load_strictly(model, checkpoint, weights)
        model.cfg = cfg
        model.dataset_meta = _dataset_meta(model, cfg, checkpoint, weights)
        try:
            return model.to(device).eval()
        except (RuntimeError, AssertionError) as error:  # what torch raises depends on the kind of device
            raise UserError(f'device {device}: {error}') from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning that mmdet causes once a process, and without log lines, which are for training runs."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='torch.meshgrid')
            yield
    finally:
        logger.setLevel(level)


class _Visualizer(DetLocalVisualizer):
    """mmdet's with one size for all labels; its own are illegible at small boxes and cover much at large ones."""

    def draw_texts(self, *args, font_sizes: int | list[int] | None = None, **kwargs) -> DetLocalVisualizer:
        return super().draw_texts(*args, font_sizes=9, **kwargs)


def _load_strictly(model: nn.Module, checkpoint: dict, path: str) -> None:
    state_dict = find_state_dict(checkpoint, path)
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, AssertionError) as error:  # hooks that resize position embeddings assert
        own = model.state_dict()
        problems = {
            'are missing': [key for key in own if key not in state_dict],
            'are not in the model': [key for key in state_dict if key not in own],
            'are of another shape': [
                f'{key} {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}'
                for key in own if key in state_dict and state_dict[key].shape != own[key].shape],
        }
        lines = [f'{len(keys)} tensors {what} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
                 for what, keys in problems.items() if keys]
        if any(key.startswith('bbox_head.transformer.') for key in state_dict):
            fix = 'It is of mmdet 2.x: convert it with tools/model_converters/mmdet2x_to_3x.py'
        else:
            fix = 'Use the config that it was trained with, which lies in its work directory'
        raise UserError(f'{path}: does not fit the config: {"; ".join(lines) or error}. {fix}') from None


def _dataset_meta(model: nn.Module, cfg: Config, checkpoint: dict, path: str) -> dict:
    dataset_cfg = dict(cfg.test_dataloader.dataset, lazy_init=True)
    meta = dict(DATASETS.build(dataset_cfg).metainfo)
    meta.setdefault('palette', 'random')
    trained_on = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    if trained_on is not None and list(trained_on) != list(meta['classes']):
        raise UserError(
            f'{path}: was trained on the classes {list(trained_on)}, while test_dataloader.dataset of the config has '
            f'{list(meta["classes"])}. Set its metainfo.classes to the former')
    num_classes = model.bbox_head.num_classes
    if len(meta['classes']) != num_classes:
        raise UserError(
            f'{cfg.filename}: test_dataloader.dataset has {len(meta["classes"])} classes, while '
            f'model.bbox_head.num_classes is {num_classes}')
    return meta
