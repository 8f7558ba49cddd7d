"""Let mmengine write its files, above all checkpoints, whole or not at all."""

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from deit_detr.files import write_bytes


class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files, writing with :func:`deit_detr.files.replacing`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        write_bytes(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file."""
        self.put(obj.encode(encoding), filepath)


def install_whole_file_backend() -> None:
    """Let mmengine write all its local files with :class:`WholeFileBackend`."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
