from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from editing import HEIGHT, WIDTH, box_mask, changed_copy, photograph, standing

from ilat_runtime.cli import doctor, edit
from ilat_runtime.image_file import read_image, write_image
from ilat_runtime.joints import JOINTS

IMAGE = photograph()


def pose_file(path: Path, count: int = 1, **changes: Any) -> Path:
    values = {
        "format": "ilat-pose",
        "version": 1,
        "joints": list(JOINTS),
        "image_size": [WIDTH, HEIGHT],
        "poses": [standing(lean=0.4 * step / max(1, count - 1)).round(2).tolist() for step in range(count)],
        "reference": standing(35).round(2).tolist(),
        **changes,
    }
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_image(tmp_path / "photo.png", IMAGE)
    pose_file(tmp_path / "target.json")
    pose_file(tmp_path / "sequence.json", 4, fps=12)
    write_image(tmp_path / "mask.png", np.repeat(box_mask(60, 40, 30, 25, IMAGE)[..., None] * np.uint8(255), 3, 2))
    (tmp_path / "out").mkdir()
    return tmp_path


class Run:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def ilat_edit(work: Path, pose_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(work)

    def run(*arguments: str, bundle: Path = pose_bundle, image: str = "photo.png") -> Run:
        try:
            code = edit.main([image, "--bundle", str(bundle), "--threads", "1", *arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return Run(code, out, err)

    return run


def outputs(work: Path) -> list[str]:
    return sorted(os.listdir(work / "out"))


# --- what it does ---


def test_edit(ilat_edit: Any, work: Path) -> None:
    done = ilat_edit("--pose", "target.json", "--out", "out/a.png")
    assert done.code == 0, done.err
    assert "out/a.png: " in done.out
    assert "tokens generated in" in done.out
    assert "onnxruntime" in done.out
    assert done.err == "", "no bar where there is no terminal"
    assert read_image(work / "out/a.png").shape == IMAGE.shape
    assert outputs(work) == ["a.png"]


def test_json(ilat_edit: Any, work: Path) -> None:
    done = ilat_edit("--pose", "target.json", "--out", "out/a.png", "--json", "--mask", "mask.png")
    assert done.code == 0, done.err
    data = done.data
    assert set(data) == {
        "out", "tokens", "masked_tokens", "transformer_calls", "timings_ms", "backend", "bytes", "notice"
    }  # fmt: skip
    assert data["out"] == "out/a.png"
    assert len(data["tokens"]) == data["masked_tokens"] >= data["transformer_calls"] > 0
    assert set(data["timings_ms"]) == {"encode", "prefill", "decode", "decoder", "total"}
    assert data["bytes"] == (work / "out/a.png").stat().st_size
    assert data["notice"] is None
    mask = box_mask(60, 40, 30, 25, IMAGE)
    edited = read_image(work / "out/a.png")
    assert (edited[~mask] == IMAGE[~mask]).all()
    assert (edited[mask] != IMAGE[mask]).any()


def test_quiet(ilat_edit: Any) -> None:
    done = ilat_edit("--pose", "target.json", "--out", "out/a.png", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_seed_and_top_k(ilat_edit: Any) -> None:
    def tokens(*options: str) -> list[int]:
        done = ilat_edit("--pose", "target.json", "--out", "out/a.png", "--json", "--force", *options)
        assert done.code == 0, done.err
        return done.data["tokens"]

    assert tokens("--top-k", "9", "--seed", "5") == tokens("--top-k", "9", "--seed", "5")
    assert tokens("--top-k", "9", "--seed", "5") != tokens("--top-k", "9", "--seed", "6")
    assert tokens() == tokens("--top-k", "1")
    done = ilat_edit("--pose", "target.json", "--out", "out/a.png", "--json", "--force", "--seed", "5")
    assert done.data["notice"] == "--seed and --temperature have no effect with --top-k 1"


def test_reference_pose_of_the_file_and_of_the_flag(ilat_edit: Any, work: Path) -> None:
    pose_file(work / "bare.json", reference=None)
    pose_file(work / "reference.json", poses=[standing(35).round(2).tolist()], reference=None)
    given = ilat_edit("--pose", "target.json", "--out", "out/a.png", "--json").data
    flag = ilat_edit("--pose", "bare.json", "--reference-pose", "reference.json", "--out", "out/b.png", "--json").data
    bare = ilat_edit("--pose", "bare.json", "--out", "out/c.png", "--json").data
    assert given["tokens"] == flag["tokens"]
    assert given["notice"] is flag["notice"] is None
    assert bare["notice"] == "no reference pose was given: only the target's skeleton is masked"
    assert bare["masked_tokens"] < given["masked_tokens"]


def test_comparison(ilat_edit: Any, work: Path) -> None:
    done = ilat_edit("--pose", "target.json", "--out", "out/a.png", "--compare", "out/sheet.png")
    assert done.code == 0, done.err
    assert "out/sheet.png: reference, target pose, mask and result" in done.out
    sheet = read_image(work / "out/sheet.png")
    assert sheet.shape[1] > 3 * sheet.shape[0] * 0.7, "four pictures in a row"


def test_sequence(ilat_edit: Any, work: Path) -> None:
    done = ilat_edit("--poses", "sequence.json", "--out", "out/a.mp4", "--compare", "out/sheet.jpg", "--json")
    assert done.code == 0, done.err
    data = done.data
    assert data["frames"] == 4 == len(data["tokens"])
    assert data["masked_tokens"] == sum(map(len, data["tokens"]))
    assert 0 < data["transformer_calls"] <= data["masked_tokens"]
    reader = cv2.VideoCapture(str(work / "out/a.mp4"))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert reader.get(cv2.CAP_PROP_FPS) == 12
    assert reader.get(cv2.CAP_PROP_FRAME_WIDTH) == WIDTH
    sheet = read_image(work / "out/sheet.jpg")
    assert sheet.shape[0] > 0.7 * sheet.shape[1], "a row for each of the four frames"
    slow = ilat_edit("--poses", "sequence.json", "--out", "out/b.mp4", "--fps", "3")
    assert "4 frames at 3 a second" in slow.out
    assert outputs(work) == ["a.mp4", "b.mp4", "sheet.jpg"]


def test_bundle_without_pose(ilat_edit: Any, mask_bundle: Path) -> None:
    done = ilat_edit("--mask", "mask.png", "--out", "out/a.png", "--compare", "out/s.png", "--json", bundle=mask_bundle)
    assert done.code == 0, done.err
    assert done.data["masked_tokens"] > 0
    for arguments, message in (
        (["--pose", "target.json", "--mask", "mask.png"], "takes no pose"),
        ([], "--mask is missing"),
    ):
        done = ilat_edit(*arguments, "--out", "out/b.png", bundle=mask_bundle)
        assert done.code == 2
        assert message in done.err


# --- images of all kinds ---


def test_grey_rgba_16_bit_and_one_pixel(ilat_edit: Any, work: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = {
        "grey": IMAGE[..., 0],
        "rgba": np.dstack([IMAGE, rng.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)]),
        "deep": IMAGE.astype(np.uint16) * 257,
    }
    for name, picture in kinds.items():
        cv2.imwrite(str(work / f"{name}.png"), picture)
        done = ilat_edit("--pose", "target.json", "--out", f"out/{name}.png", image=f"{name}.png")
        assert done.code == 0, done.err
        assert read_image(work / f"out/{name}.png").shape == IMAGE.shape
    write_image(work / "one.png", IMAGE[:1, :1])
    write_image(work / "white.png", np.full((1, 1, 3), 255, np.uint8))
    pose_file(work / "one.json", image_size=[1, 1], poses=[[[0.5, 0.5, 1]] * 13], reference=None)
    done = ilat_edit("--pose", "one.json", "--mask", "white.png", "--out", "out/one.png", image="one.png")
    assert done.code == 0, done.err
    assert read_image(work / "out/one.png").shape == (1, 1, 3)


def test_masks_of_nothing_and_of_everything(ilat_edit: Any, work: Path) -> None:
    write_image(work / "black.png", np.zeros_like(IMAGE))
    done = ilat_edit("--pose", "target.json", "--mask", "black.png", "--out", "out/a.png", "--json")
    assert done.code == 0
    assert done.data["notice"] == "nothing is masked: the image is returned unchanged"
    assert done.data["tokens"] == []
    assert (read_image(work / "out/a.png") == IMAGE).all()
    done = ilat_edit("--pose", "target.json", "--mask", "black.png", "--out", "out/b.png")
    assert "note: nothing is masked" in done.out
    write_image(work / "white.png", np.full_like(IMAGE, 255))
    done = ilat_edit("--pose", "target.json", "--mask", "white.png", "--out", "out/c.png", "--json")
    assert done.code == 0
    assert done.data["masked_tokens"] > 0


# --- wrong use and bad input: one line, an exit code, no file ---

WRONG = [
    (["--pose", "target.json", "--out", "out/a.png", "--sed", "3"], 2, "--sed 3 (did you mean --seed?)"),
    (["--out", "out/a.png"], 2, "--pose or --poses is missing"),
    (["--pose", "target.json"], 2, "--out"),
    (["--pose", "target.json", "--poses", "sequence.json", "--out", "out/a.mp4"], 2, "not allowed with argument"),
    (["--poses", "sequence.json", "--out", "out/a.png"], 2, "--out out/a.png: --poses makes a video"),
    (["--pose", "target.json", "--out", "out/a.mp4"], 2, "a video needs --poses"),
    (["--pose", "target.json", "--out", "out/a.png", "--fps", "3"], 2, "--fps: only with --poses"),
    (["--pose", "target.json", "--out", "out/a.png", "--seed", "x"], 2, "--seed: invalid int value: 'x'"),
    (["--reference-pose", "target.json", "--out", "out/a.png"], 2, "--reference-pose: only with"),
    (["--pose", "target.json", "--out", "out/a.png", "--compare", "out/a.png"], 2, "--compare"),
    (["--pose", "sequence.json", "--out", "out/a.png"], 1, "sequence.json: holds 4 poses, --pose takes one"),
    (["--pose", "none.json", "--out", "out/a.png"], 1, "none.json"),
    (["--pose", "photo.png", "--out", "out/a.png"], 1, "photo.png"),
    (["--pose", "target.json", "--mask", "none.png", "--out", "out/a.png"], 1, "none.png: no such file"),
    (
        ["--pose", "target.json", "--mask", "small.png", "--out", "out/a.png"],
        1,
        "small.png: the mask is 110x149 pixels",
    ),
    (["--pose", "target.json", "--mask", "target.json", "--out", "out/a.png"], 1, "target.json: not a PNG"),
    (["--pose", "target.json", "--out", "out/a.gif"], 1, "out/a.gif: cannot write .gif, expected .png"),
    (["--pose", "target.json", "--out", "nowhere/a.png"], 1, "nowhere does not exist"),
    (["--pose", "target.json", "--out", "target.json/a.png"], 1, "target.json/a.png"),
    (["--pose", "target.json", "--out", "out/a.png", "--seed", "-1"], 1, "seed: -1"),
    (["--pose", "target.json", "--out", "out/a.png", "--top-k", "0"], 1, "top_k: 0"),
    (["--pose", "target.json", "--out", "out/a.png", "--temperature", "nan"], 1, "temperature: nan"),
    (["--pose", "target.json", "--out", "out/a.png", "--threads", "0"], 1, "threads: 0"),
    (["--pose", "target.json", "--out", "out/a.png", "--backend", "tensorrt"], 1, "error: backend: tensorrt"),
    (["--pose", "target.json", "--out", "out/a.png", "--backend", "onnxruntim"], 1, "did you mean onnxruntime?"),
    (["--poses", "sequence.json", "--out", "out/a.mp4", "--fps", "-3"], 1, "fps: -3"),
    (["--pose", "17.json", "--out", "out/a.png"], 1, "17.json: poses[0]"),
    (["--pose", "12.json", "--out", "out/a.png"], 1, "12.json: poses[0]: 12 landmarks, expected 13"),
    (["--pose", "nan.json", "--out", "out/a.png"], 1, "nan.json"),
    (
        ["--pose", "other.json", "--out", "out/a.png"],
        1,
        "other.json: image_size: the poses belong to an image of 50x60",
    ),
    (
        ["--pose", "away.json", "--out", "out/a.png"],
        1,
        "away.json: poses[0]: no visible landmark lies inside the image",
    ),
    (["--poses", "far.json", "--out", "out/a.mp4"], 1, "far.json: poses[1]: head at (1e+07, 0) is too far outside"),
]


@pytest.fixture
def bad_files(work: Path) -> None:
    good = standing().tolist()
    write_image(work / "small.png", np.full((HEIGHT - 1, WIDTH, 3), 255, np.uint8))
    pose_file(work / "17.json", poses=[[[1, 1, 1]] * 17])
    pose_file(work / "12.json", poses=[good[:12]])
    pose_file(work / "nan.json", poses=[[[float("nan"), 1, 1], *good[1:]]])
    pose_file(work / "other.json", image_size=[50, 60])
    pose_file(work / "away.json", poses=[[[x + 115, y, v] for x, y, v in good]])
    pose_file(work / "far.json", poses=[good, [[1e7, 0, 1], *good[1:]]])


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(
    ("arguments", "code", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong(ilat_edit: Any, work: Path, arguments: list[str], code: int, message: str) -> None:
    done = ilat_edit(*arguments)
    last = done.err.strip().splitlines()[-1]
    assert done.code == code, done.err
    assert message in last
    assert last.startswith("ilat-edit: error: ")
    assert code == 2 or len(done.err.strip().splitlines()) == 1
    assert done.out == ""
    assert outputs(work) == []


def damaged_images(work: Path) -> None:
    """cut.png, huge.png (20000x20000 by its header) and text.png, beside photo.png."""
    data = (work / "photo.png").read_bytes()
    (work / "cut.png").write_bytes(data[: len(data) // 2])
    huge = bytearray(data)
    huge[16:24] = (20000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (work / "huge.png").write_bytes(huge)
    (work / "text.png").write_text("hello")


def test_truncated_huge_and_missing_images(ilat_edit: Any, work: Path) -> None:
    damaged_images(work)
    for name, message in {
        "cut.png": "the file is truncated",
        "huge.png": "20000x20000 pixels are too many",
        "text.png": "not a PNG, JPEG, WebP or BMP image",
        "none.png": "no such file",
        "out": "not a file",
    }.items():
        done = ilat_edit("--pose", "target.json", "--out", "out/a.png", image=name)
        assert done.code == 1
        assert done.err.startswith(f"ilat-edit: error: {name}: {message}")
        assert outputs(work) == []


def test_bad_bundles(ilat_edit: Any, pose_bundle: Path, tmp_path: Path) -> None:
    def check(folder: Path, message: str) -> None:
        done = ilat_edit("--pose", "target.json", "--out", "out/a.png", bundle=folder)
        assert done.code == 1
        assert message in done.err
        assert len(done.err.splitlines()) == 1

    check(tmp_path / "no", "no such bundle, expected a folder with manifest.json")
    check(changed_copy(pose_bundle, tmp_path / "key", lambda m: m.update(x=1)), "manifest.json: x: unknown key")
    check(changed_copy(pose_bundle, tmp_path / "new", lambda m: m.update(format_version=9)), "has version 9")
    missing = changed_copy(pose_bundle, tmp_path / "missing", lambda m: None)
    (missing / "decoder.onnx").unlink()
    check(missing, "decoder.onnx: missing")
    changed = changed_copy(pose_bundle, tmp_path / "changed", lambda m: None)
    with (changed / "decoder.onnx").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    check(changed, "decoder.onnx: its contents have changed")


def test_nothing_is_overwritten(ilat_edit: Any, work: Path) -> None:
    (work / "out/a.png").write_text("precious")
    done = ilat_edit("--pose", "target.json", "--out", "out/a.png")
    assert done.code == 1
    assert "out/a.png: exists already; overwrite it with --force" in done.err
    assert (work / "out/a.png").read_text() == "precious"
    assert ilat_edit("--pose", "target.json", "--out", "out/a.png", "--force").code == 0
    assert read_image(work / "out/a.png").shape == IMAGE.shape


# --- what only a process of its own shows ---

SCRIPT = "import sys; from ilat_runtime.cli.edit import main; raise SystemExit(main(sys.argv[1:]))"
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
"""


def process(
    work: Path, bundle: Path, *arguments: str, before: str = "", stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        before + SCRIPT,
        "photo.png",
        "--bundle",
        str(bundle),
        "--threads",
        "1",
        *arguments,
    ]
    return subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=stderr, text=True, preexec_fn=heed_interrupts
    )


def heed_interrupts() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(os.name != "posix", reason="file size limits of POSIX")
@pytest.mark.parametrize(
    "arguments", [["--pose", "target.json", "--out", "out/a.bmp"], ["--poses", "sequence.json", "--out", "out/a.mp4"]]
)
def test_full_disk(work: Path, pose_bundle: Path, arguments: list[str]) -> None:
    running = process(work, pose_bundle, *arguments, before=FULL)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 1, err
    assert out == ""
    assert f"{arguments[-1]}: " in err.splitlines()[-1]
    assert "written" in err.splitlines()[-1]
    assert outputs(work) == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(work: Path, pose_bundle: Path, number: int, code: int) -> None:
    pose_file(work / "long.json", 5000)
    running = process(work, pose_bundle, "--poses", "long.json", "--out", "out/a.mp4", "--quiet")
    deadline = time.monotonic() + 60
    while not outputs(work) and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.05)
    assert outputs(work), "the video was begun"
    assert outputs(work) != ["a.mp4"], "under another name"
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "Traceback" not in err
    assert outputs(work) == []


def test_progress_bar_in_a_terminal(work: Path, pose_bundle: Path) -> None:
    pty = pytest.importorskip("pty", reason="terminals of POSIX")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    running = process(work, pose_bundle, "--pose", "target.json", "--out", "out/a.png", stderr=theirs)
    running.communicate(timeout=120)
    shown = os.read(ours, 100_000).decode()
    os.close(theirs)
    os.close(ours)
    assert running.returncode == 0, shown
    assert "tokens" in shown


# --- ilat-doctor ---


def test_doctor(pose_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([str(pose_bundle)]) == 0
    text = capsys.readouterr().out
    assert "onnxruntime" in text
    assert "used: onnxruntime" in text
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"):
        assert f"\n  {name} " in text
    assert "complete and unchanged" in text
    assert doctor.main([str(pose_bundle), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["problems"] == []
    assert data["bundle"]["kind"] == "pose"
    assert data["auto"]["backend"].startswith("onnxruntime")
    assert data["packages"]["numpy"] == np.__version__
    assert doctor.main([]) == 0


def test_doctor_finds_what_is_wrong(pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(pose_bundle, tmp_path / "b")
    (tmp_path / "b/encoder.onnx").unlink()
    assert doctor.main([str(tmp_path / "b")]) == 1
    assert "problem: " in (text := capsys.readouterr().out)
    assert "encoder.onnx: missing" in text
    assert doctor.main([str(tmp_path / "b"), "--json"]) == 1
    assert "encoder.onnx: missing" in json.loads(capsys.readouterr().out)["problems"][0]
