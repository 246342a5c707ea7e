"""L4P-tiny's own stages on generated scenes: both of them, killed and gone on with, to the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path

from helpers import ROOT, Fourd
from train_parts import forked, kill_after, logged_lines

SIZE = "{ embed_dim = 32, depth = 3, heads = 2, patch = [2, 8, 8], mlp_ratio = 2, grid = [8, 4, 4] }"
HEADS = """
[heads.{name}]
taps = [0, 1, 1, 2]
features = 8
last = 8
layer_dims = [8, 8, 8, 8]
"""


def small(folder: Path) -> Path:
    """The recipe with a smaller network, smaller clips and few steps."""
    lines = [f'extends = "{ROOT / "recipes/l4p_tiny.toml"}"', 'weights = "none"', f"[backbone]\nsize = {SIZE}"]
    lines += [HEADS.format(name=name) for name in ("depth", "flow", "motion", "cameras")]
    lines.append("ray_grid = 4\n[heads.track]\nheads = 2\nmlp = 16")
    for stage, steps in (("train_1", 5), ("train_2", 4)):
        lines.append(f"[stages.{stage}]\nsteps = {steps}\nwarmup = 1\ncheckpoint_every = 2\nlog_every = 1")
        lines.append(f"[stages.{stage}.objective]\ncrop = 16\npoints = 4")
        lines.append(f"[stages.{stage}.data]\npixels = 24\npatterns = 4\nphotographs = false\ntexture_pixels = 32")
    path = folder / "small.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def curve(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_both_stages_killed_at_random_steps(fourd: Fourd, tmp_path: Path) -> None:
    """The loss curve is the same to the last digit, and so are the weights."""
    recipe, chance = small(tmp_path), random.Random(7)
    stages = ("train_1", "train_2")
    fourd("run", recipe, *stages, "--out", "whole", check=0)
    assert [row["stage"] for row in curve(tmp_path / "whole")] == ["train_1"] * 5 + ["train_2"] * 4
    for least, most in ((1, 3), (5, 7)):
        processes = forked(tmp_path, "run", recipe, *stages, "--out", "killed")
        kill_after(tmp_path / "killed", processes, chance.randint(least, most))
        assert logged_lines(tmp_path / "killed") < 9, "the kill came too late to test anything"
    fourd("run", recipe, *stages, "--out", "killed", check=0)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for stage in stages:
        name = f"{stage}/weights.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
