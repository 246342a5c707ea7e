"""nerfstudio's `transforms.json`.

Its pixels are fourd's (the centre of the top left one is (0.5, 0.5)) and its poses lead from the camera to the world
too, but its camera axes are OpenGL's: x right, y up, z backward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from fourd_core.files import atomic


def write_transforms(
    path: Path,
    file_paths: Sequence[str],
    size: tuple[int, int],
    intrinsics: Float[Tensor, "t 3 3"],
    world_from_cam: Float[Tensor, "t 4 4"],
) -> None:
    """Write one entry a frame with its own intrinsics; a frame whose camera is not finite is left out.

    The format knows no skew. The world stays as it is: nerfstudio turns and scales it when it reads the file.

    Args:
        file_paths: of the images, relative to `path`'s folder.
        size: height and width of the images.

    Source: nerfstudio's documentation, Data conventions.

    Raises:
        ValueError: not one file path for each frame.
        RunError: the disk is full, the folder is not writable.
    """
    if len(file_paths) != len(world_from_cam):
        raise ValueError(f"{len(world_from_cam)} frames need as many file paths, got {len(file_paths)}")
    poses = world_from_cam.double().cpu()
    opengl = poses * poses.new_tensor([1, -1, -1, 1])
    pinholes = intrinsics.double().cpu()
    known = opengl.isfinite().flatten(1).all(dim=1) & pinholes.isfinite().flatten(1).all(dim=1)
    head = json.dumps({"camera_model": "OPENCV", "w": size[1], "h": size[0]})
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        # Line by line: as one value, the frames of a long video would fill the memory.
        file.write(head[:-1] + ', "frames": [')
        for number, frame in enumerate(known.nonzero().flatten().tolist()):
            k = pinholes[frame].tolist()
            entry = {
                "file_path": file_paths[frame],
                "fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2],
                "transform_matrix": opengl[frame].tolist(),
            }  # fmt: skip
            file.write(("," if number else "") + "\n" + json.dumps(entry, ensure_ascii=False))
        file.write("\n]}\n")
