"""Size and completeness of an encoded image, from its bytes and without decoding it.

Decoders allocate what a header asks for and fill what is missing with grey; both are to be refused beforehand.
"""

from __future__ import annotations

import re
import struct
import zlib

# In a JPEG's entropy-coded data, 0xFF is followed by 0 or is a restart marker (or fill); anything else ends the scan.
_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

TRUNCATED = "the file is truncated"


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, as stored (before any EXIF rotation), of a complete PNG, JPEG, WebP or BMP.

    Raises:
        ValueError: another format, a damaged header, or data that ends too early; the message says which.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        reader = _png
    elif data.startswith(b"\xff\xd8\xff"):
        reader = _jpeg
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        reader = _webp
    elif data.startswith(b"BM"):
        reader = _bmp
    else:
        raise ValueError("empty" if not data else "not a PNG, JPEG, WebP or BMP image")
    try:
        width, height = reader(data)
    except (struct.error, IndexError):
        raise ValueError(TRUNCATED) from None
    if width < 1 or height < 1:
        raise ValueError(f"its header gives the size {width}x{height}")
    return width, height


def _png(data: bytes) -> tuple[int, int]:
    position, size = 8, None
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            raise ValueError("the file is damaged (a PNG checksum is wrong)")
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise ValueError("the file is damaged (no PNG header)")
            size = struct.unpack_from(">II", data, position + 8)
        if kind == b"IEND":
            return int(size[0]), int(size[1])
        position = end + 4


def _jpeg(data: bytes) -> tuple[int, int]:
    position, size = 2, None
    while True:
        if data[position] != 0xFF:
            raise ValueError("the file is damaged (no JPEG marker where one is due)")
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2:
            raise ValueError("the file is damaged (a JPEG segment without a length)")
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            if size is not None and size != (width, height):
                raise ValueError("the file is damaged (two JPEG frames of different sizes)")
            size = (int(width), int(height))
        position += length
        if marker == 0xDA:
            end = _SCAN_END.search(data, position)
            if end is None:
                raise ValueError(TRUNCATED)
            position = end.start()
    if size is None:
        raise ValueError("the file is damaged (a JPEG without a frame)")
    return size


def _webp(data: bytes) -> tuple[int, int]:
    (length,) = struct.unpack_from("<I", data, 4)
    if len(data) < 8 + length:
        raise ValueError(TRUNCATED)
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("the file is damaged (no WebP frame)")


def _bmp(data: bytes) -> tuple[int, int]:
    start, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)
    if compression in (0, 3) and len(data) < start + (width * bits + 31) // 32 * 4 * height:
        raise ValueError(TRUNCATED)
    return int(width), int(height)
