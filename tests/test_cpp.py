"""The C++ editor against the Python one: the same tokens, pixels, messages and exit codes.

What is tested was built by ``make cpp``. Without it the tests are skipped, visibly; with ILAT_REQUIRE_CPP=1, as in CI,
they fail.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from cpp_edit import Edit, Pixels, library
from editing import HEIGHT, WIDTH, box_mask, changed_copy, photograph, standing, with_graph
from test_edit_cli import WRONG, bad_files, damaged_images, heed_interrupts, pose_file, work

from ilat_export import cli as export
from ilat_runtime import Editor, IlatError, __version__, read_poses
from ilat_runtime.backends import BACKENDS
from ilat_runtime.cli import edit
from ilat_runtime.image_file import read_image, write_image
from ilat_runtime.image_header import image_size
from ilat_runtime.manifest import parse_manifest

__all__ = ["bad_files", "work"]  # fixtures

ROOT = Path(__file__).parent.parent
PREFIX, BUILD = ROOT / "build/prefix", ROOT / "build/cpp"
CPP_EDIT = PREFIX / "bin/cpp-edit"
BUILT = all(path.exists() for path in (CPP_EDIT, PREFIX / "lib/libilat.so", BUILD / "tests/parse"))
REQUIRED = os.environ.get("ILAT_REQUIRE_CPP") == "1"
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)

pytestmark = pytest.mark.skipif(
    not REQUIRED and (not BUILT or LIBRARY is None), reason="the C++ editor is not built here: make cpp"
)

IMAGE = photograph()


@pytest.fixture(autouse=True)
def _same_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run the same build of ONNX Runtime: two builds may round differently."""
    monkeypatch.setenv("ILAT_ONNXRUNTIME", str(LIBRARY))


class Both:
    """Runs ilat-edit and cpp-edit with the same arguments; each writes to a folder of its own."""

    def __init__(self, work: Path, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.work, self.bundle, self._capfd = work, bundle, capfd

    def python(self, arguments: list[str]) -> tuple[int, str, str]:
        try:
            code = edit.main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *self._capfd.readouterr()

    def cpp(self, arguments: list[str]) -> tuple[int, str, str]:
        done = subprocess.run([CPP_EDIT, *arguments], capture_output=True, text=True, cwd=self.work, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *arguments: str, bundle: Path | None = None, image: str = "photo.png") -> tuple[Any, Any]:
        """(code, stdout, stderr) of both; what they wrote is moved to py/ and cpp/."""
        common = [image, "--bundle", str(bundle or self.bundle), "--threads", "1", *arguments]
        answers = []
        for name, run in (("py", self.python), ("cpp", self.cpp)):
            answers.append(run(common))
            shutil.rmtree(self.work / name, ignore_errors=True)
            (self.work / "out").rename(self.work / name)
            (self.work / "out").mkdir()
        return answers[0], answers[1]

    def equal(self, *arguments: str, bundle: Path | None = None, image: str = "photo.png") -> dict[str, Any]:
        """Both succeed with the same JSON and images; the JSON of C++."""
        python, cpp = self(*arguments, "--json", bundle=bundle, image=image)
        assert python[0] == 0, python[2]
        assert cpp[0] == 0, cpp[2]
        expected, found = json.loads(python[1]), json.loads(cpp[1])
        assert expected["tokens"] == found["tokens"]
        assert list(expected) == list(found)
        assert set(expected["timings_ms"]) == set(found["timings_ms"])
        for key in set(expected) - {"timings_ms", "bytes"}:
            assert expected[key] == found[key], key
        for path in sorted((self.work / "py").iterdir()):
            assert found["bytes"] > 0
            if path.suffix == ".png":
                ours, theirs = read_image(self.work / "cpp" / path.name), read_image(path)
                assert ours.shape == theirs.shape
                if path.name != "sheet.png":  # the two releases of OpenCV draw letters differently
                    assert np.abs(ours.astype(int) - theirs).max() <= 1
        return found

    def refused(self, *arguments: str, bundle: Path | None = None, image: str = "photo.png") -> tuple[int, str]:
        """Both fail with the same exit code and message and write nothing; (code, message)."""
        python, cpp = self(*arguments, bundle=bundle, image=image)
        last = [answer[2].strip().splitlines()[-1] for answer in (python, cpp)]
        assert last[0].startswith("ilat-edit: error: ")
        assert last[1].startswith("cpp-edit: error: ")
        messages = [line.split(": error: ", 1)[1] for line in last]
        assert messages[1] == messages[0]
        assert cpp[0] == python[0] != 0
        assert cpp[1] == ""
        assert python[0] == 2 or len(cpp[2].strip().splitlines()) == 1
        assert os.listdir(self.work / "cpp") == []
        return cpp[0], messages[1]


@pytest.fixture
def both(work: Path, pose_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Both:
    monkeypatch.chdir(work)
    return Both(work, pose_bundle, capfd)


# --- the same tokens and pixels ---

POSED = ["--pose", "target.json", "--out", "out/a.png"]
MASKED = ["--mask", "mask.png", "--out", "out/a.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        POSED,
        [*POSED, "--mask", "mask.png"],
        [*POSED, "--top-k", "9", "--seed", "18446744073709551615", "--temperature", "1.7"],
        [*POSED, "--top-k", "24", "--seed", "5", "--dilation", "0.2", "--margin", "1.9", "--blend"],
        [*POSED, "--dilation", "0", "--seed", "3"],
        [*POSED, "--compare", "out/sheet.png"],
    ],
    ids=" ".join,
)
def test_pose(both: Both, arguments: list[str]) -> None:
    data = both.equal(*arguments)
    assert data["masked_tokens"] >= data["transformer_calls"] > 0


@pytest.mark.parametrize("numbering", ["released", "vanilla"])
def test_numberings(both: Both, tmp_path: Path, numbering: str) -> None:
    """The numbering is in the manifest only; another plan of C++ would give other tokens."""
    bundle = changed_copy(both.bundle, tmp_path / "bundle", lambda m: m.update(numbering=numbering))
    data = both.equal(*POSED, "--top-k", "9", bundle=bundle)
    assert data["masked_tokens"] > 0


@pytest.mark.parametrize("options", [["--kv-cache", "concat"], ["--fp16"], ["--int8"], ["--int4"]], ids=" ".join)
def test_exported_anew(both: Both, tmp_path: Path, options: list[str]) -> None:
    """Other caches (two that change places; half precision) and other weights."""
    bundle = tmp_path / "bundle"
    assert export.main([str(both.bundle), *options, "--out", str(bundle), "--quiet", "--force"]) == 0
    assert both.equal(*POSED, "--top-k", "9", bundle=bundle)["masked_tokens"] > 0


def test_kind_none(both: Both, mask_bundle: Path) -> None:
    assert both.equal(*MASKED, bundle=mask_bundle)["masked_tokens"] > 0
    assert both.equal(*MASKED, "--top-k", "9", "--margin", "3", bundle=mask_bundle)["masked_tokens"] > 0


def test_kind_sketch(both: Both, work: Path, sketch_bundle: Path) -> None:
    arguments = [*MASKED, "--save-sketch", "out/sketch.png", "--compare", "out/sheet.png"]
    drawn = both.equal(*arguments, bundle=sketch_bundle)
    assert drawn["masked_tokens"] > 0
    sketch = read_image(work / "py/sketch.png")
    sketch[60:90, 40:65] = 255
    write_image(work / "sketch.png", sketch)
    both.equal(*MASKED, "--sketch", "sketch.png", "--no-blend", bundle=sketch_bundle)
    both.equal(*MASKED, "--sketch", "sketch.png", "--top-k", "9", "--margin", "1.5", bundle=sketch_bundle)
    for wrong in (["--pose", "target.json"], ["--compare", "out/a.png"], ["--save-sketch", "out/a.gif"]):
        both.refused(*MASKED, *wrong, bundle=sketch_bundle)
    both.refused(*MASKED, "--sketch", "target.json", bundle=sketch_bundle)
    both.refused("--out", "out/a.png", bundle=sketch_bundle)


def test_sequence(both: Both, work: Path) -> None:
    data = both.equal("--poses", "sequence.json", "--out", "out/a.mp4", "--compare", "out/sheet.png")
    assert data["frames"] == 4 == len(data["tokens"])
    frames = [cv2.VideoCapture(str(work / name / "a.mp4")) for name in ("py", "cpp")]
    for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT):
        assert frames[0].get(key) == frames[1].get(key)


def test_demo_bundle(both: Both, work: Path) -> None:
    """The shipped model on the photograph of the demo, as PNG: two releases of libjpeg may differ by a level."""
    sample = ROOT / "samples/pose-demo"
    write_image(work / "reference.png", read_image(sample / "reference.jpg"))
    bundle = ROOT / "samples/bundles/pose-demo"
    arguments = ["--pose", str(sample / "target.json"), "--out", "out/a.png"]
    assert both.equal(*arguments, bundle=bundle, image="reference.png")["masked_tokens"] > 0
    sampled = [*arguments, "--top-k", "50", "--seed", "1"]
    assert both.equal(*sampled, bundle=bundle, image="reference.png")["masked_tokens"] > 0


def test_images_of_all_kinds(both: Both, work: Path) -> None:
    rng = np.random.default_rng(0)
    for name, picture in {
        "grey": IMAGE[..., 0],
        "rgba": np.dstack([IMAGE, rng.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)]),
        "deep": IMAGE.astype(np.uint16) * 257,
    }.items():
        cv2.imwrite(str(work / f"{name}.png"), picture)
        both.equal(*POSED, image=f"{name}.png")
    write_image(work / "one.png", IMAGE[:1, :1])
    write_image(work / "white1.png", np.full((1, 1, 3), 255, np.uint8))
    pose_file(work / "one.json", image_size=[1, 1], poses=[[[0.5, 0.5, 1]] * 13], reference=None)
    both.equal("--pose", "one.json", "--mask", "white1.png", "--out", "out/one.png", image="one.png")
    for name, value in (("black", 0), ("white", 255)):
        write_image(work / f"{name}.png", np.full_like(IMAGE, value))
        both.equal(*POSED, "--mask", f"{name}.png")


def test_text(both: Both) -> None:
    python, cpp = both(*POSED, "--compare", "out/sheet.png", "--seed", "4")
    assert python[0] == cpp[0] == 0
    told = [answer[1].splitlines() for answer in (python, cpp)]
    assert told[0][1:] == told[1][1:]
    assert [line.split(" tokens generated in ")[0] for line in (told[0][0], told[1][0])].count(
        told[0][0].split(" tokens generated in ")[0]
    ) in (1, 2), "the size of a PNG may differ between two releases of OpenCV"
    quiet = both(*POSED, "--quiet")[1]
    assert quiet == (0, "", "")


# --- the same messages and exit codes ---


PYTHON_ONLY = {
    "tensorrt": "is not compiled into this library; build ilat where NvInfer.h and CUDA's headers are, or with "
    "-DILAT_TENSORRT_INCLUDE=DIR -DILAT_CUDA_INCLUDE=DIR",
    "tensorrt-rtx": "is not in the C++ library; the Python runtime has it",
    "onnxruntime-cuda": "is not in the C++ library; the Python runtime has it",
}
"""Backends of Python that this C++ library lacks, and what it says of them."""


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [case[:2] for case in WRONG if case[0][-1] not in PYTHON_ONLY],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong(both: Both, arguments: list[str], code: int) -> None:
    """The table of tests/test_edit_cli.py through cpp-edit."""
    assert both.refused(*arguments)[0] == code


@pytest.mark.parametrize("backend", sorted(BACKENDS.keys() - {"onnxruntime"}))
def test_backends_of_python_only(both: Both, work: Path, backend: str) -> None:
    """Each backend of Python that C++ lacks is an error of one line that says how to get it, never another backend."""
    code, out, err = both.cpp(["photo.png", "--bundle", str(both.bundle), *POSED, "--backend", backend])
    assert (code, out) == (1, "")
    assert err == f"cpp-edit: error: backend: {backend} {PYTHON_ONLY[backend]}\n"
    assert os.listdir(work / "out") == []


@pytest.mark.parametrize(
    "arguments",
    [
        [*POSED, "--top-k", "99999999999"],
        [*POSED, "--top-k", "1.5"],
        [*POSED, "--seed", "18446744073709551616"],
        [*POSED, "--temperature", "abc"],
        [*POSED, "--temperature", "1e-5"],
        [*POSED, "--margin", "0.5"],
        [*POSED, "--margin", "nan"],
        [*POSED, "--dilation", "-0.1"],
        [*POSED, "--dilation", "2"],
        [*POSED, "--sketch", "mask.png"],
        [*POSED, "--save-sketch", "out/s.png"],
        [*POSED, "--json=yes"],
        [*POSED, "--fps"],
        [*POSED, "more", "--forc"],
        ["--poses", "sequence.json", "--pose", "target.json", "--out", "out/a.mp4"],
        ["--poses", "sequence.json", "--out", "out/a.mp4", "--fps", "2000"],
        ["--poses", "sequence.json", "--out", "out/a.mp4", "--seed", "-3"],
        ["--pose", "target.json", "--out", "out"],
        ["--pose", "out", "--out", "out/a.png"],
    ],
    ids=" ".join,
)
def test_wrong_options(both: Both, arguments: list[str]) -> None:
    both.refused(*arguments)


def test_damaged_images(both: Both, work: Path) -> None:
    damaged_images(work)
    (work / "empty.png").write_bytes(b"")
    write_image(work / "dark.png", np.full_like(IMAGE, 1))
    for name in ("cut.png", "huge.png", "text.png", "empty.png", "none.png", "work"):
        both.refused(*POSED, image=name)
    both.refused(*POSED, "--mask", "dark.png")


def test_bad_bundles(both: Both, pose_bundle: Path, tmp_path: Path) -> None:
    """A missing file, a changed byte, an unknown key, a path, a truncated graph, a newer version."""

    def check(folder: Path, message: str) -> None:
        assert message in both.refused(*POSED, bundle=folder)[1]

    def changed(name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        return changed_copy(pose_bundle, tmp_path / name, change)

    check(tmp_path / "no", "no such bundle")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", "missing, a bundle is a folder with")
    check(changed("key", lambda m: m.update(x=1)), "manifest.json: x: unknown key")
    check(changed("near", lambda m: m.update(image_siz=1)), "did you mean 'image_size'?")
    check(changed("new", lambda m: m.update(format_version=9)), "has version 9")
    check(changed("path", lambda m: m["graphs"]["decoder"].update(file="../decoder.onnx")), "no '..'")
    missing = changed("missing", lambda m: None)
    (missing / "decoder.onnx").unlink()
    check(missing, "decoder.onnx: missing")
    byte = changed("byte", lambda m: None)
    graph = bytearray((byte / "decoder.onnx").read_bytes())
    graph[100] ^= 1
    (byte / "decoder.onnx").write_bytes(graph)
    check(byte, "decoder.onnx: its contents have changed")
    link = changed("link", lambda m: None)
    (link / "decoder.onnx").rename(tmp_path / "outside.onnx")
    (link / "decoder.onnx").symlink_to(tmp_path / "outside.onnx")
    check(link, "a link that leaves")
    cut = (pose_bundle / "decoder.onnx").read_bytes()[:1000]
    check(with_graph(pose_bundle, tmp_path / "cut", "decoder", cut), "cannot load the graph")
    other = (pose_bundle / "encoder.onnx").read_bytes()
    check(with_graph(pose_bundle, tmp_path / "other", "decoder", other), "only")


def _mutants(value: Any, rng: random.Random, count: int) -> list[str]:
    """JSON texts, each with one or two values changed, removed or added."""
    values = [None, True, 0, 1, -1, 1.5, 2**31, 2**62, "", "x", "../x", "/x", [], [1], {}, {"a": 1}, "é\n'\""]

    def places(node: Any) -> list[tuple[Any, Any]]:
        items = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        found = [(node, key) for key, _ in items]
        return found + [place for _, child in items for place in places(child)]

    result = []
    for _ in range(count):
        changed = copy.deepcopy(value)
        for _ in range(rng.choice((1, 1, 2))):
            node, key = rng.choice(places(changed))
            action = rng.randrange(4)
            if action == 0:
                del node[key]
            elif action == 1 and isinstance(node, dict):
                node[rng.choice(["extra", f"{key}s", "a/../b"])] = copy.deepcopy(rng.choice(values))
            else:
                node[key] = copy.deepcopy(rng.choice(values))
        result.append(json.dumps(changed, ensure_ascii=rng.random() < 0.5))
    return result


def _parsed(what: str, texts: list[bytes], folder: Path) -> list[str | None]:
    """What the C++ parser says to each text."""
    paths = []
    for index, text in enumerate(texts):
        paths.append(folder / f"{index}")
        paths[-1].write_bytes(text)
    done = subprocess.run([BUILD / "tests/parse", what, *paths], capture_output=True, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _said(parse: Callable[[], Any]) -> str | None:
    try:
        parse()
    except (IlatError, ValueError) as error:
        return str(error)
    return None


def test_mutated_manifests(pose_bundle: Path, sketch_bundle: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a manifest, C++ names the same key with the same words."""
    rng = random.Random(0)
    texts: list[str] = []
    for bundle in (pose_bundle, sketch_bundle):
        manifest = json.loads((bundle / "manifest.json").read_text())
        for name in ("verification", "provenance"):  # anything goes there
            manifest[name] = {}
        texts += [json.dumps(manifest), *_mutants(manifest, rng, 250)]
    found = _parsed("manifest", [text.encode() for text in texts], tmp_path)
    expected = [_said(lambda text=text: parse_manifest(text)) for text in texts]
    assert None in expected
    assert sum(message is not None for message in expected) > 300
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours == theirs, text


def test_mutated_pose_files(tmp_path: Path) -> None:
    rng = random.Random(1)
    own = json.loads(pose_file(tmp_path / "own.json", 2, fps=12).read_text())
    flat = [value for x, y, v in standing().tolist() for value in (x, y, v)]
    coco = {
        "annotations": [{"image_id": 3, "keypoints": (flat + flat)[:51]}],
        "images": [{"id": 3, "width": WIDTH, "height": HEIGHT}],
    }
    people = {"people": [{"pose_keypoints_2d": (flat + flat)[:54]}]}
    texts = [text for value in (own, coco, people) for text in [json.dumps(value), *_mutants(value, rng, 150)]]
    texts.append(json.dumps(own).replace("1]", "NaN]", 1))
    expected = []
    for text in texts:
        path = tmp_path / "poses.json"
        path.write_text(text)
        message = _said(lambda path=path: read_poses(path))
        expected.append(message and message.replace(str(path), "poses.json"))
    assert None in expected
    found = _parsed("poses", [text.encode() for text in texts], tmp_path)
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours == theirs, text


def test_mutated_images(tmp_path: Path) -> None:
    """Sizes and damage are found by the same rules, so neither decoder sees what the other would not."""
    rng = random.Random(2)
    small = photograph(9, 14)
    texts = []
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        data = cv2.imencode(suffix, small)[1].tobytes()
        texts.append(data)
        for _ in range(150):
            changed = bytearray(data)
            changed[rng.randrange(min(len(data), 64))] = rng.randrange(256)
            texts.append(bytes(changed[: rng.choice((len(data), rng.randrange(len(data))))]))
    found = _parsed("image", texts, tmp_path)
    for text, ours in zip(texts, found, strict=True):
        assert ours == _said(lambda text=text: image_size(text))


# --- what only a process of its own shows ---


def _start(both: Both, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [CPP_EDIT, "photo.png", "--bundle", both.bundle, "--threads", "1", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    "out", [["--pose", "target.json", "--out", "out/a.bmp"], ["--poses", "sequence.json", "--out", "out/a.mp4"]]
)
def test_full_disk(both: Both, work: Path, out: list[str]) -> None:
    running = _start(both, *out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)))
    told, err = running.communicate(timeout=120)
    assert running.returncode == 1, err
    assert told == ""
    assert f"{out[-1]}: " in err.splitlines()[-1]
    assert "written" in err.splitlines()[-1]
    assert os.listdir(work / "out") == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(both: Both, work: Path, number: int, code: int) -> None:
    pose_file(work / "long.json", 5000)
    running = _start(both, "--poses", "long.json", "--out", "out/a.mp4", "--quiet", preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 60
    while not os.listdir(work / "out") and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.05)
    assert os.listdir(work / "out") not in ([], ["a.mp4"]), "the video was begun under another name"
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert os.listdir(work / "out") == []


def test_nothing_is_overwritten(both: Both, work: Path) -> None:
    (work / "out/a.png").write_text("precious")
    done = both.cpp(["photo.png", "--bundle", str(both.bundle), *POSED])
    assert done[0] == 1
    assert "out/a.png: exists already; overwrite it with --force" in done[2]
    assert (work / "out/a.png").read_text() == "precious"


def test_version_and_help(both: Both) -> None:
    assert both.cpp(["--version"]) == (0, f"cpp-edit {__version__}\n", "")
    code, out, _ = both.cpp(["--help"])
    assert code == 0
    assert "example:" in out
    flags = {word.strip("[],") for word in both.python(["--help"])[1].split() if word.strip("[],").startswith("--")}
    assert {flag for flag in flags if flag not in out} <= {"--help"}


def test_the_library_is_named_when_it_is_missing(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ILAT_ONNXRUNTIME", "/nonexistent/lib.so")
    code, _, err = both.cpp(["photo.png", "--bundle", str(both.bundle), *POSED])
    assert code == 1
    assert "$ILAT_ONNXRUNTIME (/nonexistent/lib.so: cannot open shared object file" in err


def test_too_old_a_library(both: Both, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without the interface is refused, with its version."""
    source = work / "old.c"
    source.write_text(
        "#include <stddef.h>\n"
        "static const void* api(unsigned v) { (void)v; return NULL; }\n"
        'static const char* name(void) { return "1.9.0"; }\n'
        "static const struct { const void* (*a)(unsigned); const char* (*b)(void); } base = {api, name};\n"
        "const void* OrtGetApiBase(void) { return &base; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", work / "old.so", source], check=True)
    monkeypatch.setenv("ILAT_ONNXRUNTIME", str(work / "old.so"))
    code, _, err = both.cpp(["photo.png", "--bundle", str(both.bundle), *POSED, "--backend", "onnxruntime"])
    assert code == 1
    assert "backend: onnxruntime 1.9.0 is too old, 1.20 or newer is needed" in err


@pytest.mark.parametrize("kind", ["pose", "sketch", "none"])
def test_library(kind: str, request: pytest.FixtureRequest) -> None:
    """Sessions, threads, strides, cancelling: tests/cpp/editor_tests.cpp on a bundle of each kind."""
    bundle = request.getfixturevalue({"pose": "pose_bundle", "sketch": "sketch_bundle", "none": "mask_bundle"}[kind])
    done = subprocess.run(
        [BUILD / "tests/editor-tests"],
        env={**os.environ, "ILAT_TEST_BUNDLE": str(bundle)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# --- C, and a third party's app ---


def test_c_interface(pose_bundle: Path) -> None:
    """An edit and a session through the C header, from another language: the tokens of Python, errors as statuses."""
    ilat = library(PREFIX)
    editor, result, session, message = (ctypes.c_void_p() for _ in range(4))
    assert ilat.ilat_open(str(pose_bundle).encode(), None, ctypes.byref(editor), ctypes.byref(message)) == 0
    pose, reference = standing(lean=0.3), standing(35)
    options = Edit(pose=pose.ctypes.data, reference_pose=reference.ctypes.data, top_k=9, seed=5)
    image = Pixels.of(IMAGE)
    call = (ctypes.byref(image), ctypes.byref(options), ctypes.byref(result), ctypes.byref(message))
    assert ilat.ilat_edit(editor, *call) == 0
    view = ilat.ilat_view(result)
    expected = Editor(pose_bundle, threads=1).edit(IMAGE, pose, reference_pose=reference, top_k=9, seed=5)
    assert view.tokens[: view.token_count] == expected.tokens.tolist()
    assert np.allclose(view.log_probability[: view.token_count], expected.log_probability, atol=1e-5)
    assert view.transformer_calls == expected.transformer_calls
    pixels = np.ctypeslib.as_array(ctypes.cast(view.image.data, ctypes.POINTER(ctypes.c_uint8)), IMAGE.shape)
    assert np.abs(pixels.astype(int) - expected.image).max() <= 1
    assert (view.grid, tuple(view.crop)) == (4, (expected.crop.x, expected.crop.y, expected.crop.side))
    assert view.backend.decode() == expected.backend
    ilat.ilat_free_result(result)

    crop = (ctypes.c_int * 3)(*view.crop)
    setup = Edit(reference_pose=reference.ctypes.data, crop=ctypes.addressof(crop))
    made = ilat.ilat_reference(editor, ctypes.byref(image), ctypes.byref(setup), ctypes.byref(session), None)
    assert made == 0
    ilat.ilat_close(editor)
    options.reference_pose = None
    assert ilat.ilat_session_edit(session, *call[1:]) == 0
    view = ilat.ilat_view(result)
    assert view.tokens[: view.token_count] == expected.tokens.tolist()
    ilat.ilat_free_result(result)
    options.progress = type(options.progress)(lambda done, total, user: 0)
    assert ilat.ilat_session_edit(session, *call[1:]) == 4
    assert ctypes.cast(message, ctypes.c_char_p).value == b"cancelled after 1 of %d tokens" % len(expected.tokens)
    ilat.ilat_free(message)
    options.progress, options.top_k = type(options.progress)(), 25
    assert ilat.ilat_session_edit(session, *call[1:]) == 1
    assert ctypes.cast(message, ctypes.c_char_p).value == b"top_k: 25, expected a whole number from 1 to 24"
    ilat.ilat_free(message)
    ilat.ilat_close_session(session)


@pytest.mark.skipif(not REQUIRED and shutil.which("cmake") is None, reason="cmake is not installed")
def test_app_from_the_installed_package(pose_bundle: Path, mask_bundle: Path, tmp_path: Path) -> None:
    """A new user: an empty folder, the template of samples/cpp-app, and what ``make cpp`` installed, nothing else."""
    prefix, app = tmp_path / "prefix", tmp_path / "app"
    shutil.copytree(PREFIX, prefix, symlinks=True)  # elsewhere, so that no path of the build is in it
    shutil.copytree(ROOT / "samples/cpp-app", app)
    for command in (
        ["cmake", "-S", app, "-B", app / "build", f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", app / "build"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    program = app / "build/cpp-app"
    cv2.imwrite(str(app / "in.ppm"), IMAGE[..., ::-1])
    pose = standing(lean=0.3)
    (app / "pose.txt").write_text("\n".join(" ".join(map(str, point)) for point in pose.tolist()))
    mask = box_mask(0, WIDTH // 2, HEIGHT, WIDTH, IMAGE)
    for bundle, extra, expected in (
        (pose_bundle, ["pose.txt"], Editor(pose_bundle, threads=1).edit(IMAGE, pose)),
        (mask_bundle, [], Editor(mask_bundle, threads=1).edit(IMAGE, mask=mask)),
    ):
        done = subprocess.run([program, bundle, "in.ppm", "out.ppm", *extra], capture_output=True, text=True, cwd=app)
        assert done.returncode == 0, done.stderr
        assert [int(word) for word in done.stdout.split()] == expected.tokens.tolist()
        assert np.abs(cv2.imread(str(app / "out.ppm"))[..., ::-1].astype(int) - expected.image).max() <= 1
    done = subprocess.run([program, pose_bundle, "in.ppm", "out.ppm"], capture_output=True, text=True, cwd=app)
    assert done.returncode == 1
    assert "pose: missing, the bundle 'tiny-pose' (kind 'pose') needs a target pose" in done.stderr


def test_benchmark(pose_bundle: Path) -> None:
    """Both ways give the same tokens; breaks too when what measures a program is larger than the program."""
    done = subprocess.run(
        [sys.executable, ROOT / "samples/benchmarks/cpp_edit.py", "--bundle", pose_bundle, "--repeats", "1", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["process"]) == {"cpu_s", "wall_s", "peak_memory_mb", "edit_wall_s"}
    assert set(found["edit"]) == {"cpu_s", "wall_s"}
    assert all(values["ratio"] > 0 for part in ("process", "edit") for values in found[part].values())
