"""A file backend of mmengine that reads annotations and images from object storage through fsspec."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from mmengine.fileio import BaseStorageBackend, register_backend

from deit_detr.errors import UserError


@register_backend('fsspec', prefixes=['s3', 'gs', 'az'], force=True)  # mmengine gives s3:// to PetrelBackend
class FsspecBackend(BaseStorageBackend):
    """Read ``s3://bucket/key`` and other URLs that fsspec supports; this backend does not write.

    It is used for paths that start with ``s3://``, ``gs://`` or ``az://``, and for fsspec's other protocols with
    ``backend_args=dict(backend='fsspec')``. Keys, endpoint and region come from ``options``, the environment
    (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ...) or the configuration files of the
    storage.

    Args:
        **options: Options of fsspec's file system, e.g. ``endpoint_url`` and ``anon`` of s3fs.

    Raises:
        UserError: In every method, if the library of the storage is not installed, or the storage denies access or
            cannot be reached.
        FileNotFoundError: In methods that read, if the file does not exist.
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
        """Return whether a file or folder exists."""
        return self._call('exists', filepath)

    def isfile(self, filepath: str) -> bool:
        """Return whether a file exists."""
        return self._call('isfile', filepath)

    def isdir(self, filepath: str) -> bool:
        """Return whether there are files below this path."""
        return self._call('isdir', filepath)

    def join_path(self, filepath: str, *filepaths: str) -> str:
        """Join parts of a path."""
        return '/'.join(str(part).strip('/') for part in (filepath, *filepaths))

    @contextmanager
    def get_local_path(self, filepath: str) -> Iterator[str]:
        """Download a file and yield the path of a temporary copy."""
        with tempfile.TemporaryDirectory() as folder:
            path = f'{folder}/{PurePosixPath(filepath).name}'
            self._call('get_file', filepath, path)
            yield path

    def _call(self, operation: str, filepath: str, *args: str) -> Any:
        # fsspec caches file systems for each process and options; one kept here would not survive a fork
        try:
            from fsspec.core import url_to_fs
            file_system, path = url_to_fs(str(filepath), **self.options)
        except ImportError as error:
            raise UserError(f'{filepath}: {error} (requirements/optional.txt has s3fs, for s3://)') from None
        try:
            return getattr(file_system, operation)(path, *args)
        except FileNotFoundError:
            raise
        except Exception as error:  # each storage library has its own exceptions, e.g. for missing keys
            raise UserError(
                f'{filepath}: {type(error).__name__}: {error}. Keys and endpoint come from backend_args or from the '
                'environment (docs/scale.md)') from error
