"""Images of other depths than 8 bits a channel, and of 8 bits, as bytes of their files."""

import struct

import cv2
import numpy as np

NOISE = np.random.default_rng(0).integers(0, 4096, (64, 96, 4)).astype(np.uint16)


def pixmap(magic: str, brightest: int, pixels: np.ndarray) -> bytes:
    return f'{magic}\n96 64\n{brightest}\n'.encode() + pixels.astype('>u2' if brightest > 255 else 'u1').tobytes()


def bmp565() -> bytes:
    head = struct.pack('<IiiHHIIiiIIIII', 40, 96, 64, 1, 16, 3, 12288, 0, 0, 0, 0, 0xf800, 0x7e0, 0x1f)
    return b'BM' + struct.pack('<IHHI', 66 + 12288, 0, 0, 66) + head + NOISE[..., 0].tobytes()


def encode(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


EIGHT = (NOISE // 16).astype(np.uint8)
DEEP = {
    'grey.png': encode('.png', NOISE[..., 0]), 'colour.png': encode('.png', NOISE[..., :3]),
    'alpha.png': encode('.png', NOISE), 'grey.tiff': encode('.tiff', NOISE[..., 0]),
    'colour.tiff': encode('.tiff', NOISE[..., :3]), 'float.tiff': encode('.tiff', NOISE[..., 0].astype(np.float32)),
    'grey.pgm': pixmap('P5', 65535, NOISE[..., 0]), 'grey12.pgm': pixmap('P5', 4095, NOISE[..., 0]),
    'colour12.ppm': pixmap('P6', 4095, NOISE[..., :3]), 'dark.ppm': pixmap('P6', 15, EIGHT[..., :3] // 16)}
FLAT = {
    'grey.png': encode('.png', EIGHT[..., 0]), 'colour.png': encode('.png', EIGHT[..., :3]),
    'alpha.png': encode('.png', EIGHT), 'colour.jpg': encode('.jpg', EIGHT[..., :3]),
    'colour.tiff': encode('.tiff', EIGHT[..., :3]), 'bit.pbm': b'P4\n96 64\n' + bytes(12 * 64),
    'colour.ppm': pixmap('P6', 255, EIGHT[..., :3]), '565.bmp': bmp565()}
