"""Read the members of a zip archive, also of one that was cut off.

``zipfile`` needs the directory at the end of an archive, which an interrupted download lacks. Each member also has a
header of its own; these are followed from the start, and give the members that are whole.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Header of a member: signature, version, flags, method, time, date, CRC, both sizes, lengths of name and extra field.
_LOCAL_HEADER = struct.Struct('<4s5H3I2H')
_SIGNATURE = b'PK\3\4'
#: Flag of a member whose sizes follow its data, because it was written as a stream.
_SIZES_FOLLOW = 8
#: The largest member, in bytes, compressed or not.
MAX_MEMBER_BYTES = 80_000_000


@dataclass(frozen=True)
class Member:
    """A file in a zip archive. As a string, it names both.

    Attributes:
        archive: The archive.
        name: Name in the archive, with folders.
        offset: Byte at which the header of the member begins.
        size: Compressed size, in bytes.
        method: Number of the compression: 0 for none, 8 for deflate.
    """

    archive: Path
    name: str
    offset: int
    size: int
    method: int

    def __str__(self) -> str:
        return f'{self.archive}, {self.name}'

    def read_bytes(self) -> bytes:
        """Return the content. Its checksum is not verified: the images that this is for have some of their own.

        Raises:
            OSError: If it is damaged, larger than ``MAX_MEMBER_BYTES``, or compressed in another way.
        """
        if self.size > MAX_MEMBER_BYTES:
            raise OSError('too large for a frame')
        try:
            file = self.archive.open('rb')
        except FileNotFoundError:
            raise OSError('the archive is gone') from None
        with file:
            file.seek(self.offset)
            header = _read_header(file)
            if not header:
                raise OSError('the archive is damaged')
            file.seek(header[-1])
            data = file.read(self.size)
        if self.method == zipfile.ZIP_STORED:
            return data
        if self.method != zipfile.ZIP_DEFLATED:
            raise OSError(f'compressed by method {self.method}; only 0 and 8 are read')
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflate.decompress(data, MAX_MEMBER_BYTES)
        except zlib.error as error:
            raise OSError(str(error)) from None
        if not inflate.eof:
            raise OSError('incomplete, or too large for a frame')
        return data


def list_members(archive: Path) -> tuple[list[Member], bool]:
    """Return the members of an archive and whether the archive is whole.

    Of an archive without its directory, the members before its end, or before the first damage, are returned; none for
    a file of another kind.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return [Member(archive, info.filename, info.header_offset, info.compress_size, info.compress_type)
                    for info in opened.infolist() if not info.is_dir()], True
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        return list(_walk(archive)), False


def _read_header(file: BinaryIO) -> tuple[str, int, int, int, int] | None:
    """Return name, flags, method, compressed size and first byte of the data; ``None`` if no member begins here."""
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_SIGNATURE):
        return None
    _, _, flags, method, _, _, _, size, _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name = file.read(name_length).decode(errors='replace')
    return name, flags, method, size, file.tell() + extra_length


def _walk(archive: Path) -> Iterator[Member]:
    """Yield the members that are whole, from header to header."""
    with archive.open('rb') as file:
        end, offset = file.seek(0, 2), 0
        while True:
            file.seek(offset)
            header = _read_header(file)
            if not header:
                return
            name, flags, method, size, start = header
            streamed = flags & _SIZES_FOLLOW and method == zipfile.ZIP_DEFLATED
            if streamed:
                file.seek(start)
                size = _deflated_size(file)
            if size is None or start + size > end:
                return
            if not name.endswith('/'):
                yield Member(archive, name, offset, size, method)
            offset = start + size
            if streamed:
                file.seek(offset)
                offset += 16 if file.read(4) == b'PK\7\x08' else 12  # CRC and sizes, with or without a signature


def _deflated_size(file: BinaryIO) -> int | None:
    """Return the number of compressed bytes from here to the end of their stream; ``None`` if it is cut or damaged."""
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while chunk := file.read(1 << 16):
        try:
            inflate.decompress(chunk)
        except zlib.error:
            return None
        size += len(chunk) - len(inflate.unused_data)
        if inflate.eof:
            return size
    return None
