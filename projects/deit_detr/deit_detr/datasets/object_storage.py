"""Annotations and images in object storage: a file backend of mmengine that reads through fsspec."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from mmengine.fileio import BaseStorageBackend, register_backend

from deit_detr.errors import UserError


@register_backend('fsspec', prefixes=['s3', 'gs', 'az'], force=True)  # mmengine gives s3:// to PetrelBackend
class FsspecBackend(BaseStorageBackend):
    """Reads ``s3://bucket/key`` and what else fsspec knows; it does not write.

    Chosen by a path that starts with ``s3://``, ``gs://`` or ``az://``, or by ``backend_args=dict(backend='fsspec')``
    for every other of fsspec's protocols. Keys, endpoint and region come from ``options``, from the environment
    (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ...) or from the storage's own
    configuration files.

    Args:
        **options: For the file system of fsspec, e.g. ``endpoint_url`` and ``anon`` of s3fs.

    Raises:
        UserError: From every method, if the library of the storage is not installed, or the storage refuses or
            cannot be reached.
        FileNotFoundError: From those that read, if there is no such file.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def get(self, filepath: str) -> bytes:
        """Read a file."""
        return self._call('cat_file', filepath)

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Read a file as text."""
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: str) -> bool:
        """Whether there is such a file or folder."""
        return self._call('exists', filepath)

    def isfile(self, filepath: str) -> bool:
        """Whether there is such a file."""
        return self._call('isfile', filepath)

    def isdir(self, filepath: str) -> bool:
        """Whether there are files below this path."""
        return self._call('isdir', filepath)

    def join_path(self, filepath: str, *filepaths: str) -> str:
        """Join parts of a path."""
        return '/'.join(str(part).strip('/') for part in (filepath, *filepaths))

    @contextmanager
    def get_local_path(self, filepath: str) -> Iterator[str]:
        """Download a file; the copy, whose path this yields, is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            path = f'{folder}/{PurePosixPath(filepath).name}'
            self._call('get_file', filepath, path)
            yield path

    def _call(self, operation: str, filepath: str, *args: str) -> Any:
        # fsspec keeps a file system for each process, options included: one kept here would not survive a fork
        try:
            from fsspec.core import url_to_fs
            file_system, path = url_to_fs(str(filepath), **self.options)
        except ImportError as error:
            raise UserError(f'{filepath}: {error} (requirements/optional.txt has s3fs, for s3://)') from None
        try:
            return getattr(file_system, operation)(path, *args)
        except FileNotFoundError:
            raise
        except Exception as error:  # each storage has classes of its own, e.g. for missing keys
            raise UserError(
                f'{filepath}: {type(error).__name__}: {error}. Keys and endpoint come from backend_args or from the '
                'environment (docs/scaling.md)') from error
