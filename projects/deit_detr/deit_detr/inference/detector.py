"""A trained detector: load it, call it on images, draw its detections."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from matplotlib import rcParams
from mmdet.apis import DetInferencer
from mmdet.datasets.transforms import InferencerLoader
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from PIL import Image
from torch import nn

from deit_detr.checkpoints.fit import check_trained_classes, load_weights
from deit_detr.checkpoints.safe_loading import load_checkpoint_file
from deit_detr.config_file import read_config
from deit_detr.errors import UserError
from deit_detr.fonts import class_names_drawn
from deit_detr.images import MAX_PIXELS, PROGRAMS, ImageFileError, decoding, open_image, pixel_problem, upright
from deit_detr.migration.published import find_published
from deit_detr.models.compiled import compile_layers

#: A file, an 8-bit array in OpenCV's channel order (BGR), or a PIL image.
ImageInput = str | Path | np.ndarray | Image.Image
#: Largest ratio of the sides of an image; beyond it, less than a patch may be left of one side after resizing.
MAX_ASPECT = 20


def load(
    config: str | Path | Config, checkpoint: str | Path | None = None, device: str | None = None,
    compile: bool | dict = False,
) -> 'Detector':
    """Load a trained detector, or one that another project publishes.

    Example::

        import deit_detr

        detector = deit_detr.load('config.py', 'epoch_150.pth')  # or deit_detr.load('ecdet-s-coco')
        found = detector('room.jpg').pred_instances
        print(found.label_names, found.scores, found.bboxes)

    Args:
        config: Config file, or the ``Config`` read from it. Without ``checkpoint``: the name of a published detector,
            which is downloaded once, or a file converted from one, see :mod:`~deit_detr.migration.published`.
        checkpoint: Its checkpoint, a ``.pth`` or ``.safetensors`` file; no code from it is run.
        device: E.g. ``'cpu'`` or ``'cuda:1'``. Default: the GPU if there is one.
        compile: Whether to compile the layers for low latency, with CUDA graphs on a GPU, or the options for it, see
            :func:`~deit_detr.models.compiled.compile_layers`. The first call takes up to minutes, and so does the
            first one with another image or batch size.

    Returns:
        Detector: The detector, in evaluation mode.

    Raises:
        UserError: If a file is missing, the checkpoint does not fit the config, or there is no compiler.
    """
    if checkpoint is None:
        config, checkpoint = find_published(getattr(config, 'filename', config))
    if not isinstance(config, Config):
        config = read_config(config)
    missing = [field for field in ('model', 'test_dataloader') if field not in config]
    if missing:
        raise UserError(f'{config.filename}: has no {" and no ".join(missing)}: it is only a part of a config. Use '
                        'the recipe, or the resolved config in its work directory')
    return Detector(config, str(checkpoint), device, compile)


class Detector(DetInferencer):
    """mmdet's ``DetInferencer`` with a strict checkpoint and without side effects.

    Unlike in mmdet, all tensors and classes of the checkpoint have to fit the config, PIL images and paths are
    accepted, calls return ``DetDataSample`` objects, and nothing is written or shown.

    Args:
        config (Config): Config with ``model`` and ``test_dataloader``, whose pipeline prepares the images.
        checkpoint (str): Checkpoint file.
        device (str, optional): The device. Default: the GPU if there is one.
        compile (bool | dict): See :func:`load`.

    Raises:
        UserError: If the checkpoint does not fit the config, or the device or a compiler is not available.
    """

    def __init__(
        self, config: Config, checkpoint: str, device: str | None = None, compile: bool | dict = False,
    ) -> None:
        super().__init__(config, checkpoint, device, show_progress=False)
        if compile is not False:
            _compile(self.model, {} if compile is True else compile)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return tuple(self.model.dataset_meta['classes'])

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], score_thr: float = 0.3, batch_size: int = 1,
    ) -> DetDataSample | list[DetDataSample]:
        """Detect the objects in one image or in several.

        Args:
            images: One image or a list of them: paths, 8-bit arrays in OpenCV's channel order (``(height, width)``
                grey, ``(height, width, 3)`` BGR or ``(height, width, 4)`` BGRA), or PIL images. Files and PIL images
                are rotated by their EXIF orientation. Transparency is dropped.
            score_thr: Minimum score of a detection, in 0..1; 0 keeps all detections of the model.
            batch_size: Images in a batch. Images of different sizes are padded to the largest of their batch, which
                changes results slightly; 1 gives the results of the evaluation.

        Returns:
            DetDataSample | list[DetDataSample]: One for each image, on the CPU. Its ``pred_instances`` have ``bboxes``
            (x1, y1, x2, y2) in pixels of the input image, ``scores``, ``labels`` and ``label_names``, highest score
            first.

        Raises:
            UserError: If an image cannot be read, or is not an image.
        """
        many = isinstance(images, (list, tuple))
        images = list(images) if many else [images]
        try:
            with quiet():
                samples = super().__call__(images, batch_size, return_datasamples=True)['predictions']
        except RuntimeError as error:
            if 'selected index k out of range' not in str(error):
                raise
            raise UserError(
                'the sides of an image differ so much that after resizing it has fewer patches than the model has '
                'queries. Cut it into pieces') from None
        results = []
        for image, sample in zip(images, samples, strict=True):
            found = sample.pred_instances.cpu()
            found = found[found.scores >= score_thr]
            found.label_names = [self.classes[label] for label in found.labels]
            path = str(image) if isinstance(image, (str, Path)) else None
            # without the empty ground truth of the test pipeline
            results.append(DetDataSample(metainfo=sample.metainfo | dict(img_path=path), pred_instances=found))
        return results if many else results[0]

    def draw(self, image: ImageInput, sample: DetDataSample) -> Image.Image:
        """Draw detections with mmdet's visualizer, in the class colours of the data set.

        The labels have a fixed size: an image smaller than 600 pixels is enlarged, so that they do not cover it.

        Args:
            image: The image.
            sample: Its detections, from calling the detector.

        Returns:
            Image.Image: RGB, an integer multiple of the image's size.
        """
        picture = self.read(image)[..., ::-1]
        scale = max(1, round(900 / max(picture.shape)))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        found = sample.pred_instances[sample.pred_instances.scores.argsort()]  # the highest score on top
        found.bboxes = found.bboxes * scale
        dpi = 0.13 * max(1000, *picture.shape)
        self.visualizer.dpi = dpi
        self.visualizer.fig_save.set_dpi(dpi)
        with class_names_drawn(self.classes), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.* out of bounds')  # for boxes that touch the border
            self.visualizer.add_datasample(
                'detections', picture, DetDataSample(pred_instances=found), draw_gt=False, pred_score_thr=-1)
        return Image.fromarray(self.visualizer.get_image())

    def read(self, image: ImageInput) -> np.ndarray:
        """Read an image in mmdet's format.

        Files are read by the loading step of the config's test pipeline, as in evaluation.

        Args:
            image: See :meth:`__call__`.

        Returns:
            np.ndarray: BGR, uint8 ``(height, width, 3)``.

        Raises:
            UserError: If it cannot be read, or is not an 8-bit image.
        """
        array = self._read_any(image)
        sides = sorted(array.shape[:2])
        if sides[1] > MAX_ASPECT * sides[0]:
            raise UserError(f'an image of {array.shape[1]}x{array.shape[0]} pixels: one side is more than {MAX_ASPECT} '
                            'times the other, which is too narrow after resizing. Cut it into pieces')
        return array

    def _read_any(self, image: ImageInput) -> np.ndarray:
        if isinstance(image, (str, Path)):
            return self._read_file(Path(image))
        if isinstance(image, Image.Image):
            if problem := pixel_problem(image):
                raise UserError(f'a PIL image of mode {image.mode}: convert it to 8 bits a channel first; {problem}')
            if image.format in PROGRAMS:
                raise UserError(f'a PIL image from a file in {image.format} format: decoding it would run a program')
            if not 0 < image.width * image.height <= MAX_PIXELS:
                raise UserError(f'a PIL image of {image.width}x{image.height} pixels: it has to have 1 to '
                                f'{MAX_PIXELS} of them')
            try:
                with decoding():
                    image = upright(image).convert('RGB')
            except (OSError, ImageFileError) as error:  # PIL decodes files lazily
                raise UserError(f'a PIL image cannot be decoded ({error})') from None
            return np.ascontiguousarray(np.asarray(image)[..., ::-1])
        if not isinstance(image, np.ndarray):
            raise UserError(f'an image is a path, a NumPy array or a PIL image, not a {type(image).__name__}')
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)) \
                or not 0 < image.size <= 4 * MAX_PIXELS:
            raise UserError(
                f'an array of {image.dtype} and shape {image.shape} is not an image: it has to be uint8 and (height, '
                'width), (height, width, 3) in BGR order or (height, width, 4) in BGRA order')
        if image.ndim == 2 or image.shape[2] == 1:
            return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return np.ascontiguousarray(image[..., :3])

    def _read_file(self, path: Path) -> np.ndarray:
        if path.is_dir():
            raise UserError(f'{path}: is a folder. Pass a list of its images')
        if not path.is_file():
            raise UserError(f'{path}: no such image file')
        try:
            with open_image(path) as opened:  # checks the size, which OpenCV does not limit
                if opened.format == 'TIFF' and 'A' in opened.getbands():  # OpenCV multiplies the colours by it
                    return self._read_any(opened)
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
        return pseudo_collate  # mmdet's lookup also returns it, with a warning

    def _init_visualizer(self, cfg: Config) -> DetLocalVisualizer:
        visualizer = _Visualizer()  # not the config's, whose backends write files
        visualizer.dataset_meta = self.model.dataset_meta
        return visualizer

    def _init_model(self, cfg: Config, weights: str, device: str) -> nn.Module:
        checkpoint = load_checkpoint_file(weights)
        model = MODELS.build(cfg.model)
        load_weights(model, checkpoint, weights)
        model.cfg = cfg
        model.dataset_meta = _dataset_meta(model, cfg, checkpoint, weights)
        try:
            return model.to(device).eval()
        except (RuntimeError, AssertionError) as error:  # the exception depends on the device type
            raise UserError(f'device {device}: {error}') from None


def _compile(model: nn.Module, options: dict) -> None:
    device = next(model.parameters()).device.type
    if device == 'cpu' and options.get('backend', 'inductor') == 'inductor':
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise UserError(f'compile=True needs a C++ compiler on a CPU: {error}') from None
    if device == 'cuda' and not {'mode', 'backend', 'options'} & options.keys():
        options = options | dict(mode='reduce-overhead')
    compile_layers(model, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress mmdet's log lines, which are for training runs, and its warning about ``torch.meshgrid``."""
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
    """mmdet's visualizer with labels of one size, which otherwise depends on the box: illegible or huge."""

    def draw_texts(self, *args, font_sizes: int | list[int] | None = None, **kwargs) -> DetLocalVisualizer:
        return super().draw_texts(*args, font_sizes=9, font_families=[rcParams['font.family']], **kwargs)


def _dataset_meta(model: nn.Module, cfg: Config, checkpoint: dict, path: str) -> dict:
    dataset_cfg = dict(cfg.test_dataloader.dataset, lazy_init=True)
    meta = dict(DATASETS.build(dataset_cfg).metainfo)
    meta.setdefault('palette', 'random')
    check_trained_classes(checkpoint, path, meta['classes'], 'test_dataloader.dataset.metainfo.classes')
    num_classes = model.bbox_head.num_classes
    if len(meta['classes']) != num_classes:
        raise UserError(
            f'{cfg.filename}: test_dataloader.dataset has {len(meta["classes"])} classes, while '
            f'model.bbox_head.num_classes is {num_classes}')
    return meta
