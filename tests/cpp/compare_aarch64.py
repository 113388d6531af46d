"""compare_aarch64.py BUNDLE... -- COMMAND...: an edit by a foreign cpp-app against Python here: the same tokens."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from editing import HEIGHT, WIDTH, box_mask, photograph, standing

from ilat_runtime import Editor


def main() -> int:
    """Raises AssertionError or CalledProcessError where they differ."""
    at = sys.argv.index("--")
    image, pose = photograph(), standing(lean=0.3)
    for bundle in sys.argv[1:at]:
        editor = Editor(bundle, threads=1)
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / name) for name in ("in.ppm", "out.ppm", "pose.txt")]
            cv2.imwrite(files[0], image[..., ::-1])
            Path(files[2]).write_text("\n".join(" ".join(map(str, point)) for point in pose.tolist()))
            posed = editor.manifest.kind == "pose"
            command = [*sys.argv[at + 1 :], bundle, *files[: 3 if posed else 2]]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
            if posed:
                expected = editor.edit(image, pose)
            else:
                expected = editor.edit(image, mask=box_mask(0, WIDTH // 2, HEIGHT, WIDTH, image))
            tokens = [int(word) for word in done.stdout.split()]
            assert tokens == expected.tokens.tolist(), (tokens, expected.tokens)
            difference = np.abs(cv2.imread(files[1])[..., ::-1].astype(int) - expected.image).max()
            assert difference <= 1, difference
            print(f"{bundle}: {len(tokens)} equal tokens, pixels differ by at most {difference}: {done.stderr.strip()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
