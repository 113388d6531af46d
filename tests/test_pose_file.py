"""Pose files: what is written is read, other formats are understood, mistakes are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ilat_runtime.errors import InputError
from ilat_runtime.joints import JOINTS
from ilat_runtime.pose_file import PoseFile, read_poses, write_poses

COCO17 = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
]
OPENPOSE18 = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
]
OPENPOSE25 = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "mid_hip",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
    "left_big_toe",
    "left_small_toe",
    "left_heel",
    "right_big_toe",
    "right_small_toe",
    "right_heel",
]


def own(**changes):
    pose = [[10.0 * i, 5.0 * i, 1] for i in range(13)]
    data = {"format": "ilat-pose", "version": 1, "joints": list(JOINTS), "image_size": [640, 480], "poses": [pose]}
    return {key: value for key, value in {**data, **changes}.items() if value is not ...}


def save(tmp_path, data) -> Path:
    path = tmp_path / "pose.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def keypoints(names, confidence=0.7):
    """x tells the landmark by its place, y is 2, all visible."""
    return [number for place in range(len(names)) for number in (float(place), 2.0, confidence)]


def expected_x(names):
    return [names.index("nose" if joint == "head" else joint) for joint in JOINTS]


@given(
    xy=hnp.arrays(np.float32, (3, 13, 2), elements=st.floats(-1e4, 1e4, width=32)),
    visible=hnp.arrays(np.float32, (3, 13, 1), elements=st.sampled_from([0.0, 1.0])),
)
def test_written_poses_read_back_exactly(tmp_path_factory, xy, visible):
    poses = np.concatenate([xy, visible], axis=-1)
    path = tmp_path_factory.mktemp("poses") / "p.json"
    write_poses(path, PoseFile(poses, (640, 480), poses[0], 29.97))
    back = read_poses(path)
    np.testing.assert_array_equal(back.poses, poses)
    assert back.poses.dtype == np.float32
    np.testing.assert_array_equal(back.reference, poses[0])
    assert (back.image_size, back.fps) == ((640, 480), 29.97)
    assert [file.name for file in path.parent.iterdir()] == ["p.json"]


def test_joints_in_another_order(tmp_path):
    joints = list(reversed(JOINTS))
    pose = [[float(JOINTS.index(name)), 0, 1] for name in joints]
    found = read_poses(save(tmp_path, own(joints=joints, poses=[pose], reference=pose)))
    np.testing.assert_array_equal(found.poses[0, :, 0], np.arange(13))
    assert found.reference is not None
    np.testing.assert_array_equal(found.reference[:, 0], np.arange(13))


def test_coco_annotations(tmp_path):
    values = keypoints(COCO17, 2)
    values[3 * COCO17.index("left_wrist") + 2] = 0
    data = {
        "images": [{"id": 4, "width": 640, "height": 480}, {"id": 5, "width": 1, "height": 1}],
        "annotations": [{"image_id": 4, "keypoints": values}],
    }
    found = read_poses(save(tmp_path, data))
    assert found.image_size == (640, 480)
    np.testing.assert_array_equal(found.poses[0, :, 0], expected_x(COCO17))
    assert set(np.flatnonzero(found.poses[0, :, 2] == 0)) == {JOINTS.index("left_wrist")}


def test_coco_results_are_a_list(tmp_path):
    found = read_poses(save(tmp_path, [{"image_id": i, "keypoints": keypoints(COCO17)} for i in (1, 2)]))
    assert found.poses.shape == (2, 13, 3)
    assert found.image_size is None
    np.testing.assert_array_equal(found.poses[..., 2], 1)


@pytest.mark.parametrize("names", [OPENPOSE18, OPENPOSE25])
def test_openpose(tmp_path, names):
    found = read_poses(save(tmp_path, {"version": 1.3, "people": [{"pose_keypoints_2d": keypoints(names)}]}))
    np.testing.assert_array_equal(found.poses[0, :, 0], expected_x(names))
    np.testing.assert_array_equal(found.poses[0, :, 1:], [[2, 1]] * 13)


POINT = [[1.0, 2.0, 1]] * 12


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\x00", "not JSON"),
        ("3", "not a pose file"),
        ({"poses": []}, "not a pose file"),
        (own(format="other"), "format: 'other'"),
        (own(version=2), "version: 2 is newer than 1"),
        (own(version="1"), "version: '1', expected 1"),
        (own(version=...), "version: None"),
        (own(colour=1), "unknown key 'colour'"),
        (own(joints=...), "joints: expected a list"),
        (own(joints=[*JOINTS[:12], "tail"]), "unknown landmark 'tail'"),
        (own(joints=JOINTS[:12]), "joints: 12 names"),
        (own(joints=[*JOINTS[:12], "head"]), "12 distinct"),
        (own(poses=[]), "poses: expected"),
        (own(poses=...), "poses: expected"),
        (own(poses=[POINT]), r"poses\[0\]: 12 landmarks, expected 13"),
        (own(poses=[[*POINT, [1, 2]]]), r"poses\[0\]\[12\]"),
        (own(poses=[[*POINT, [1, "2", 1]]]), r"poses\[0\]\[12\]"),
        (own(poses=[[*POINT, [1, 2, 0.5]]]), "visibility 0.5, expected 0 or 1"),
        (own(poses=[[*POINT, [1, float("nan"), 1]]]), "holds NaN"),
        (own(poses=[[*POINT, [1, float("inf"), 1]]]), "holds Infinity"),
        (json.dumps(own(fps=777)).replace("777", "1e999"), "fps"),
        (own(reference=[POINT[0]]), "reference: 1 landmarks"),
        (own(image_size=[640]), "image_size"),
        (own(image_size=[640, 0]), "image_size"),
        (own(image_size=[640.5, 480]), "image_size"),
        (own(fps=0), "fps: 0"),
        ([], "annotations: expected"),
        ({"annotations": [{"bbox": []}]}, r"annotations\[0\]: no 'keypoints'"),
        ([{"keypoints": [1.0] * 50}], r"\[0\].keypoints: 50 numbers, expected 51"),
        ([{"keypoints": [None] * 51}], r"keypoints\[0\]: None"),
        ([{"image_id": 1, "keypoints": [1.0] * 51}] * 2, "second person"),
        ({"people": []}, "people: 0, expected exactly one"),
        ({"people": [{}]}, r"people\[0\].pose_keypoints_2d"),
        ({"people": [{"pose_keypoints_2d": [1.0] * 51}]}, "51 numbers, expected 54 or 75"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, data, says):
    path = save(tmp_path, data)
    with pytest.raises(InputError, match=says) as error:
        read_poses(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_binary_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_poses(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not JSON"):
        read_poses(tmp_path / "binary.json")


def test_nothing_wrong_is_written(tmp_path):
    path = tmp_path / "p.json"
    write_poses(path, PoseFile(np.ones((1, 13, 3), np.float32)))
    before = path.read_bytes()
    with pytest.raises(InputError, match="finite"):
        write_poses(path, PoseFile(np.full((1, 13, 3), np.nan, np.float32)))
    with pytest.raises(InputError, match="12 landmarks"):
        write_poses(path, PoseFile(np.ones((1, 12, 3), np.float32)))
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="cannot be written"):
        write_poses(tmp_path / "none" / "p.json", PoseFile(np.ones((1, 13, 3), np.float32)))


def test_demo_input():
    folder = Path(__file__).parents[1] / "samples" / "pose-demo"
    target, sequence = read_poses(folder / "target.json"), read_poses(folder / "sequence.json")
    assert target.image_size == sequence.image_size == (1080, 1920)
    assert (len(target.poses), len(sequence.poses), sequence.fps) == (1, 20, 60)
    assert target.reference is not None
    np.testing.assert_array_equal(sequence.poses[92 - 80], target.reference)
    np.testing.assert_array_equal(sequence.poses[82 - 80], target.poses[0])
