"""One cue, one objective and one hook: all that a plugin for fourd needs is a class and an entry point for each."""

import attrs
import torch
import torch.nn.functional as F
from torch import nn

from fourd_core.data import Clip, CueMaps
from fourd_core.hooks import hookimpl
from fourd_core.interfaces import CueProvider, Objective


class Edges(CueProvider):
    """Edges of a frame: how much the brightness changes from a pixel to its right and lower neighbours."""

    kind = "map"
    channels = 1

    @attrs.frozen
    class Config:
        gain: float = 1.0
        """Factor of the map."""

    def __init__(self, config):
        self.gain = config.gain

    @torch.no_grad()
    def __call__(self, clip):
        grey = clip.frames.mean(2, keepdim=True)
        right, down = F.pad(grey.diff(dim=-1), (0, 1)), F.pad(grey.diff(dim=-2), (0, 0, 0, 1))
        return CueMaps(self.gain * torch.hypot(right, down), self.kind)


class Regression(Objective):
    """A linear read-out of a head's features learns a one-channel cue, by its L1 error."""

    @attrs.frozen
    class Config:
        head: str = "features"
        """The head that learns."""
        cue: str = "edges"
        """The cue that it learns."""
        size: int = 64
        """Side of the training crops in pixels."""

    def __init__(self, config, system):
        super().__init__()
        self.config = config
        self.readout = nn.Linear(system.heads[config.head].channels, 1)

    def sample(self, data, split, generator):
        def draw(count):
            return int(torch.randint(count, (), generator=generator))

        videos, size = data.videos(split), self.config.size
        video = videos[draw(len(videos))]
        y, x = (draw(side - size + 1) for side in video.size)
        return {"frames": video.read([draw(video.frame_count)])[..., y : y + size, x : x + size]}

    def forward(self, system, batch, generator):
        clip = Clip(batch["frames"] / 255)
        features = system(clip)[self.config.head].values.movedim(2, -1)
        return {"loss": F.l1_loss(self.readout(features).movedim(-1, 2), system.cues[self.config.cue](clip).values)}

    @classmethod
    def example_system(cls):
        from fourd_core.testing.miniature import Miniature

        return Miniature(cues={"edges": Edges(Edges.Config())})


class Diary:
    """Writes what happens during a run into the run folder, as diary.txt."""

    @hookimpl
    def fourd_step_finished(self, run, stage, step, metrics):
        with (run.folder / "diary.txt").open("a") as diary:
            diary.write(f"{stage} {step}: {metrics['loss']:.6f}\n")

    @hookimpl
    def fourd_run_finished(self, run, status):
        with (run.folder / "diary.txt").open("a") as diary:
            diary.write(f"{status}\n")
