"""Components for tests of kept cues: pairs of frames, and teachers that write down every time they are asked."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from fourd_core.data import Clip, CueMaps
from fourd_core.errors import MediaError
from fourd_core.interfaces import CueProvider, Dataset, Draw, Objective, PretrainedWeights, Sample, Split, Video
from fourd_core.media.writers import encode_png
from fourd_core.recipe import Location

METADATA = "Metadata-Version: 2.1\nName: fourd-plugin-cueparts\nVersion: 0.1.0\nSummary: For tests\n"
ENTRY_POINTS = """
[fourd.plugin]
api.1 = cue_parts

[fourd.cues]
counted = cue_parts:Counted

[fourd.objectives]
pairs = cue_parts:Pairs
"""


def install(folder: Path) -> Path:
    """Make the components known where `folder` is on the path."""
    info = folder / "fourd_plugin_cueparts-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


class Counted(CueProvider):
    """The difference of the two frames as flow, or each frame's brightness; one line per call goes into a log."""

    @attrs.frozen
    class Config:
        """What it says, and what happens to the process that it says it in."""

        kind: Literal["flow", "map"] = "flow"
        alone: bool = False
        """Whether a frame's map depends on that frame alone."""
        gain: float = 20.0
        log: Location | None = None
        """A file that gets the number of clips of each call."""
        deaths: int = 0
        """So many times the dask worker called 1 dies in the middle of a call."""
        kill: Location | None = None
        """A file with the id of a process that it ends when it is asked for the third time."""
        file: Location | None = None
        """Its weights."""

    def __init__(self, config: Config) -> None:
        self.config, self.kind, self.each_frame_alone = config, config.kind, config.alone

    def pretrained(self) -> PretrainedWeights | None:
        return PretrainedWeights(self.config.file, "none") if self.config.file else None

    def __call__(self, clip: Clip) -> CueMaps:
        if self.config.log:
            _append(Path(self.config.log), f"{clip.frames.shape[0]}\n")
        if self.config.deaths:
            self._perhaps_die()
        if self.config.kill and len(calls(Path(self.config.log or "").parent)) == 3:
            os.kill(int(Path(self.config.kill).read_text()), signal.SIGKILL)
        grey = clip.frames.mean(2, keepdim=True)
        if self.kind == "map":
            return CueMaps(grey * self.config.gain, "map", grey > 0.1)
        return CueMaps((clip.frames - clip.frames.flip(1))[:, :, :2] * self.config.gain, "flow")

    def _perhaps_die(self) -> None:
        """The worker called 1 dies; the others take their time until it is over, so that it is asked again."""
        graves = Path(f"{self.config.log}.deaths")
        count = len(graves.read_text()) if graves.exists() else 0
        if _worker_name() == 1 and count < self.config.deaths:
            _append(graves, "x")
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(10):
            if count < self.config.deaths:
                time.sleep(0.1)
                count = len(graves.read_text()) if graves.exists() else 0


def _worker_name() -> object:
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    return get_worker().name


def _append(path: Path, text: str) -> None:
    with path.open("a") as handle:
        handle.write(text)


class Pairs(Objective):
    """Two frames of a video, up to 3 apart."""

    @attrs.frozen
    class Config:
        """What is drawn and seen."""

        size: int = 32
        """Side of the square in the top left corner that the teachers see."""
        gap: int = 3
        draws: bool = True
        """Whether it says beforehand what it will draw."""

    def __init__(self, config: Config, system: Any) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(()))

    def draw(self, data: Dataset, split: Split, generator: torch.Generator) -> Draw | None:
        if not self.config.draws:
            return None
        videos = data.videos(split)
        if all(key in self.skip_videos for key in videos.keys):
            raise MediaError("no video can be read")
        number = _below(len(videos), generator)
        while videos.keys[number] in self.skip_videos:
            number = _below(len(videos), generator)
        first = _below(videos[number].frame_count - 1, generator)
        last = min(first + 1 + _below(self.config.gap, generator), videos[number].frame_count - 1)
        return Draw(number, (first, last))

    def cue_frames(self, video: Video, frames: Sequence[int]) -> Tensor:
        return video.read(frames)[..., : self.config.size, : self.config.size]

    def cue_view(self) -> dict[str, Any]:
        return {"size": self.config.size}

    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        draw = self.draw(data, split, generator)
        assert draw is not None
        video = data.videos(split)[draw.video]
        sample = {"frames": self.cue_frames(video, draw.frames)}
        if self.kept_cues is not None:
            sample["flow"] = self.kept_cues.read("flow", video, draw.frames).values[0]
        return sample

    def forward(self, system: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        flow = batch["flow"] if "flow" in batch else system.cues["flow"](Clip(batch["frames"] / 255)).values
        return {"loss": (flow.mean() - self.weight) ** 2}


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


RECIPE = """
threads = 1
cue_cache = "kept.zarr"

[backbone]
use = "toy_patches"

[heads.value]
use = "toy_linear"

[cues.flow]
use = "counted"
log = "calls.txt"

[data]
root = "videos"
held_out = 0

[stages.cues]
job = "cues"
threads = 2
batch = 4
unit = 4

[stages.train]
job = "train"
steps = 8
batch_size = 2

[stages.train.objective]
use = "pairs"
"""


def write_videos(folder: Path, count: int = 6, frames: int = 6) -> None:
    """Folders of pictures, 40 x 48 pixels of noise."""
    generator = torch.Generator().manual_seed(0)
    for video in range(count):
        (folder / f"v{video}").mkdir(parents=True)
        for frame in range(frames):
            picture = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=generator)
            (folder / f"v{video}" / f"{frame}.png").write_bytes(encode_png(picture))


def calls(folder: Path) -> list[int]:
    """How many clips a teacher was shown at each call."""
    path = folder / "calls.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
