from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ilat_runtime.errors import InputError, OutputError
from ilat_runtime.image_file import IMAGE_SUFFIXES, encoded, read_image, read_mask, write_image
from ilat_runtime.image_header import image_size
from ilat_runtime.video_file import VideoWriter


def picture(height: int = 30, width: int = 44) -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(), ".jpg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_of_size(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, *[0] * 5)
    )


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_written_and_read(tmp_path: Path, suffix: str) -> None:
    image = picture()
    path = tmp_path / f"a{suffix}"
    assert write_image(path, image) == path.stat().st_size
    assert os.listdir(tmp_path) == [path.name]
    again = read_image(path)
    assert again.dtype == np.uint8
    assert again.flags.c_contiguous
    difference = np.abs(again.astype(int) - image)
    assert difference.mean() < 8 if suffix.startswith(".j") else not difference.any()
    assert image_size(path.read_bytes()) == (44, 30)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_truncated_wherever(suffix: str) -> None:
    data = encoded(picture(), suffix)
    for length in range(len(data) - (1 if suffix == ".webp" and len(data) % 2 else 0)):
        with pytest.raises(ValueError, match=r"truncated|empty|not a PNG"):
            image_size(data[:length])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(picture(), suffix)[:-20])
    with pytest.raises(InputError, match=rf"a\{suffix}: the file is truncated"):
        read_image(path)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_damaged_files_give_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    original = bytearray(encoded(picture(), data.draw(st.sampled_from(IMAGE_SUFFIXES))))
    for _ in range(data.draw(st.integers(1, 4))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(original)
    with contextlib.suppress(InputError):
        assert read_image(path).dtype == np.uint8


def test_a_damaged_png_is_not_half_read(tmp_path: Path) -> None:
    data = bytearray(encoded(picture(), ".png"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="checksum"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("make", [png_header, jpeg_of_size, bmp_of_size])
def test_too_large_is_refused_before_decoding(tmp_path: Path, make: object) -> None:
    path = tmp_path / "large"
    path.write_bytes(make(20000, 20000))  # type: ignore[operator]
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"large: (20000x20000 pixels are too many|the file is truncated)"):
        read_image(path)
    assert time.perf_counter() - start < 0.5
    if make is not bmp_of_size:
        with pytest.raises(InputError, match="20000x20000"):
            read_mask(path)


def test_long_and_thin_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    path.write_bytes(png_header(1_000_000, 1))
    with pytest.raises(InputError, match="1000000x1 pixels are too many"):
        read_image(path)


def test_one_pixel(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.full((1, 1, 3), 9, np.uint8))
    assert read_image(tmp_path / "a.png").tolist() == [[[9, 9, 9]]]


def test_grey_alpha_and_16_bits_become_rgb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    grey = rng.integers(0, 256, (5, 7), np.uint8)
    cv2.imwrite(str(path), grey)
    assert (read_image(path) == grey[..., None]).all()
    bgra = rng.integers(0, 256, (5, 7, 4), np.uint8)
    cv2.imwrite(str(path), bgra)
    assert (read_image(path) == bgra[..., 2::-1]).all(), "transparency is dropped, colours stay"
    deep = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    cv2.imwrite(str(path), deep)
    assert (read_image(path) == (deep >> 8)[..., ::-1]).all()
    cv2.imwrite(str(path), deep[..., 0])
    assert (read_image(path) == (deep >> 8)[..., :1]).all()


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_orientation(tmp_path: Path, orientation: int, turn: int) -> None:
    plain = encoded(picture(), ".jpg")
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<HHI", orientation, 0, 0)
    path = tmp_path / "a.jpg"
    path.write_bytes(plain)
    upright = read_image(path)
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + plain[2:])
    assert (read_image(path) == np.rot90(upright, turn)).all()
    assert read_mask(path).shape == read_image(path).shape[:2]


def test_not_an_image(tmp_path: Path) -> None:
    for content, message in ((b"", "empty"), (b"GIF89a....", "not a PNG, JPEG, WebP or BMP"), (b"hello", "not a PNG")):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "b.png")
    with pytest.raises(InputError, match="not a file"):
        read_image(tmp_path)


def test_masks(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    grey = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
    cv2.imwrite(str(path), grey)
    assert (read_mask(path) == (grey > 127)).all()
    assert read_mask(path, (3, 2)).dtype == bool
    with pytest.raises(InputError, match=r"m\.png: the mask is 3x2 pixels, expected 2x3"):
        read_mask(path, (2, 3))
    cv2.imwrite(str(path), np.array([[0, 1]], np.uint8))
    with pytest.raises(InputError, match="brightest value is 1, expected 255"):
        read_mask(path)
    cv2.imwrite(str(path), np.zeros((2, 2), np.uint8))
    assert not read_mask(path).any()


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"a\.png: exists already.*--force"):
        write_image(path, picture())
    video = tmp_path / "a.mp4"
    video.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        VideoWriter(video, 25)
    assert path.read_text() == video.read_text() == "precious"
    write_image(path, picture(), force=True)
    assert (read_image(path) == picture()).all()


def test_unwritable_outputs(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write \.gif, expected \.png, \.jpg"):
        write_image(tmp_path / "a.gif", picture())
    with pytest.raises(OutputError, match="without a suffix"):
        write_image(tmp_path / "a", picture())
    with pytest.raises(OutputError, match="does not exist"):
        write_image(tmp_path / "no/a.png", picture())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_image(tmp_path / "folder.png", picture(), force=True)


READ_ONLY = """
import os, sys
import numpy as np
from ilat_runtime.errors import OutputError
from ilat_runtime.image_file import write_image
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    write_image(sys.argv[1] + "/a.png", np.zeros((4, 4, 3), np.uint8))
except OutputError as error:
    print(error)
"""

FULL = """
import resource, signal, sys
import numpy as np
from ilat_runtime.errors import OutputError
from ilat_runtime.image_file import write_image
from ilat_runtime.video_file import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
rng = np.random.default_rng(0)
frames = rng.integers(0, 256, (5, 200, 300, 3), np.uint8)
for name in ("a.png", "a.mp4"):
    try:
        if name == "a.png":
            write_image(sys.argv[1] + "/" + name, frames[0])
        else:
            with VideoWriter(sys.argv[1] + "/" + name, 25) as video:
                for frame in frames:
                    video.write(frame)
        print("no error")
    except OutputError as error:
        print(error)
"""


def output_of(script: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest", "test", "popen")):
            parent.chmod(0o755)
    assert "ermission denied" in output_of(READ_ONLY, folder).replace("is not writable", "permission denied")
    assert not list(folder.iterdir())
    hidden = tmp_path / "hidden"
    (hidden / "inner").mkdir(parents=True)
    hidden.chmod(0o700)
    expected = "is not writable" if os.geteuid() else "permission denied"
    (hidden / "inner").chmod(0o555)
    assert expected in output_of(READ_ONLY, hidden / "inner")


@pytest.mark.skipif(os.name != "posix", reason="file size limits of POSIX")
def test_full_disk(tmp_path: Path) -> None:
    lines = output_of(FULL, tmp_path).splitlines()
    assert "a.png: cannot be written: File too large" in lines[0]
    assert "a.mp4: the video could not be written completely" in lines[1]
    assert not list(tmp_path.iterdir()), "something was left behind"


def frames_of(path: Path) -> list[np.ndarray]:
    reader = cv2.VideoCapture(str(path))
    frames = []
    while True:
        more, frame = reader.read()
        if not more:
            return frames
        frames.append(frame[..., ::-1])


def test_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    image = picture(90, 121)
    with VideoWriter(path, 25) as video:
        for shift in range(7):
            video.write(np.roll(image, shift, 1))
        assert not path.exists(), "appears when it is complete"
    assert os.listdir(tmp_path) == ["a.mp4"]
    frames = frames_of(path)
    assert [frame.shape for frame in frames] == [(90, 122, 3)] * 7
    assert np.abs(frames[0][:, :121].astype(int) - image).mean() < 12


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_video_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with VideoWriter(tmp_path / "a.mp4", 25) as video:
            video.write(picture())
            raise error

    with pytest.raises(error):
        write()
    assert not list(tmp_path.iterdir())


def test_wrong_videos(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected \.mp4"):
        VideoWriter(tmp_path / "a.avi", 25)
    for fps in (0, -1, float("nan"), 1e9):
        with pytest.raises(InputError, match="fps"):
            VideoWriter(tmp_path / "a.mp4", fps)

    def write(*frames: np.ndarray) -> None:
        with VideoWriter(tmp_path / "a.mp4", 25) as video:
            for frame in frames:
                video.write(frame)

    with pytest.raises(InputError, match="at least one frame"):
        write()
    with pytest.raises(InputError, match="among frames"):
        write(picture(), picture(20))
    assert not list(tmp_path.iterdir())
