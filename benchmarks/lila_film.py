"""Does training on video make features that carry masks? python -m benchmarks.lila_film [STAGE ...] --archive FILE

LILA-tiny trained on a whole film in context and by ERM (same cues, seed and steps), beside its frozen encoder: the
LILA paper's table 5 (A) in miniature. Stages, each of which goes on where it was:

    prepare   the film out of moviepy's archive (film_shots.py says where to get it), cut into shots; stills
    train     recipes/lila_tiny_film.toml and recipes/ablations/lila_tiny_film_erm.toml
    validate  grids and kinds of encoder features compared on validation sequences
    evaluate  the table: masks carried through generated sequences and through the bundled clip

Writes benchmarks/results/lila_film.json (validate: lila_film_validation.json) and lila_film.jpg, a picture of carried
masks. Hours on two busy cores: nearly all of it training, and nearest neighbours of the encoder's many channels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fourd_evals.knn import KNNConfig
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

import fourd_core
from benchmarks.film_scores import Extractor, Score, carried, encoder_features, head_features, overlaid, score_generated
from benchmarks.film_sequences import FRAMES, SIZE, Filmed, random_sequence
from benchmarks.film_shots import unpack_film, write_shots, write_stills
from benchmarks.saving import FOLDER, save
from fourd_core.cli import main as fourd
from fourd_core.files import write_json
from fourd_core.media.panels import arranged, fitted, panel_size
from fourd_core.media.video import open_video
from fourd_core.recipe import load_recipe

ROOT = Path(__file__).parent.parent
WORK = ROOT / "runs/lila_film"
RUNS = {"in_context": "recipes/lila_tiny_film.toml", "erm": "recipes/ablations/lila_tiny_film_erm.toml"}
STAGES = "prepare", "train", "validate", "evaluate"

SIDE = 48
"""Places along the smaller side of the grid, for all kinds of features; chosen on the validation sequences."""
VALIDATION_SIDES = 32, 48
VALIDATION_SEEDS, TEST_SEEDS = range(1000, 1003), range(2000, 2010)
CLIP = ROOT / "examples/bigbuckbunny.mp4"
CLIP_MASKS = {44: "examples/masks/bigbuckbunny_044.png", 116: "examples/masks/bigbuckbunny_116.png"}
"""Frame of the clip -> the mask drawn in it: the first is carried on, the last is what is compared with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="by default prepare, train, evaluate")
    parser.add_argument("--archive", type=Path, help="moviepy-2.2.1.tar.gz, for the stage prepare")
    parser.add_argument("--work", type=Path, default=WORK, help="the film, its shots and the runs")
    arguments = parser.parse_args()
    stages = arguments.stages or ("prepare", "train", "evaluate")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if "prepare" in stages:
        prepare(arguments.archive, arguments.work)
    if "train" in stages:
        train(arguments.work)
    if "validate" in stages:
        save("lila_film_validation", validate(arguments.work), "python -m benchmarks.lila_film validate")
        add_protocol("lila_film_validation", protocol(arguments.work, VALIDATION_SEEDS, "validation"))
    if "evaluate" in stages:
        save("lila_film", evaluate(arguments.work), "python -m benchmarks.lila_film")
        add_protocol("lila_film", protocol(arguments.work, TEST_SEEDS, "test"))


def prepare(archive: Path | None, work: Path) -> None:
    """Film, shots and stills, as far as they are not there."""
    work.mkdir(parents=True, exist_ok=True)
    film = work / "film.mp4"
    if not film.exists():
        if archive is None:
            raise SystemExit(
                "name the archive: `pip download --no-deps --no-binary moviepy moviepy==2.2.1`, then "
                "`python -m benchmarks.lila_film --archive moviepy-2.2.1.tar.gz`"
            )
        unpack_film(archive, film)
    if not (work / "shots/shots.json").exists():
        write_shots(film, work / "shots")
    if not (work / "stills/stills.json").exists():
        write_stills(film, work / "shots", work / "stills")


def train(work: Path) -> None:
    """Both trainings; `fourd run` goes on where it was."""
    video = f'data.video="{(work / "shots/train").absolute().as_posix()}"'
    for name, recipe in RUNS.items():
        code = fourd(["run", str(ROOT / recipe), "train", "--set", video, "--out", str(work / name)])
        if code:
            raise SystemExit(code)


def generated(work: Path, split: str, seeds: range) -> list[Filmed]:
    """The sequences of these seeds, made of a split's stills."""
    video = open_video(str(work / "stills" / split))
    stills = list(video.read(range(video.frame_count)))
    return [random_sequence(stills, seed) for seed in seeds]


def kinds_of_features(work: Path, grid: KNNConfig) -> dict[str, Extractor]:
    """The rows of the table."""
    in_context, erm = (fourd_core.load(work / name) for name in RUNS)
    return {
        "trained in context": head_features(in_context),
        "trained by ERM": head_features(erm),
        "head at initialisation": head_features(in_context.untrained().eval()),
        **encoder_features(in_context, grid),
    }


def validate(work: Path) -> list[dict[str, Any]]:
    """J&F on the validation sequences, by grid and kind of features."""
    sequences = generated(work, "validation", VALIDATION_SEEDS)
    rows: list[dict[str, Any]] = []
    known = Known(work / "validation.json")
    for side in VALIDATION_SIDES:
        grid = KNNConfig(side=side)
        for name, extract in kinds_of_features(work, grid).items():
            score = known(f"{side} {name}", partial(score_of, extract, sequences, grid))
            rows.append({"features": name, "grid": side, **rounded(score)})
    return rows


def evaluate(work: Path) -> list[dict[str, Any]]:
    """The table, and the picture."""
    grid = KNNConfig(side=SIDE)
    sequences, clip, known = generated(work, "test", TEST_SEEDS), bundled_clip(), Known(work / "test.json")
    kinds = kinds_of_features(work, grid)
    rows = []
    for name, extract in kinds.items():
        on_generated = known(f"{SIDE} {name}", partial(score_of, extract, sequences, grid))
        on_clip = known(f"{SIDE} clip {name}", partial(clip_score, extract, clip, grid))
        rows.append({"features": name, **rounded(on_generated), **rounded(on_clip, " clip"), "grid": SIDE})
    write_picture(FOLDER / "lila_film.jpg", kinds, sequences[0], clip, grid)
    return rows


def score_of(extract: Extractor, sequences: list[Filmed], grid: KNNConfig) -> Score:
    """J and F over generated sequences."""
    return Score.of_sequences(score_generated(extract, sequences, grid))


@attrs.frozen(eq=False)
class DrawnClip:
    """The bundled clip from the frame of the first drawn mask to that of the second, as the network sees it."""

    frames: UInt8[Tensor, "t 3 h w"]
    first: UInt8[Tensor, "height width"]
    last: UInt8[Tensor, "height width"]


def bundled_clip() -> DrawnClip:
    """Frames at SIZE, masks at the clip's own size."""
    first, last = CLIP_MASKS
    frames = open_video(str(CLIP)).read(range(first, last + 1))
    small = torch.cat([fitted(frame[None], SIZE) for frame in frames])
    return DrawnClip(small, *drawn_masks())


def drawn_masks() -> list[UInt8[Tensor, "height width"]]:
    """The masks of CLIP_MASKS: 1 is the rabbit, 2 the boulders beside its burrow."""
    return [torch.from_numpy(np.array(Image.open(ROOT / path))) for path in CLIP_MASKS.values()]


def clip_score(extract: Extractor, clip: DrawnClip, grid: KNNConfig) -> Score:
    """J and F of the carried mask in the frame of the second drawn one."""
    return Score.of_masks(clip.last, carried(extract, clip.frames, clip.first, grid)[-1])


def rounded(score: Score, suffix: str = "") -> dict[str, float]:
    """A score as columns of the table."""
    values = {"J": score.j, "F": score.f, "J&F": score.jf}
    return {name + suffix: round(value, 1) for name, value in values.items()}


def protocol(work: Path, seeds: range, split: str) -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    shots = json.loads((work / "shots/shots.json").read_text(encoding="utf-8"))
    runs = {name: json.loads((work / name / "run.json").read_text(encoding="utf-8")) for name in RUNS}
    recipe = load_recipe(work / "in_context/recipe.toml")
    return {
        "film": "bbb.mp4 of moviepy 2.2.1's source distribution",
        "training": {
            "shots": len(shots["train"]),
            "frames": sum(stop - start for start, stop in shots["train"]),
            "steps": recipe.stages["train"].config.steps,
            "batch_size": recipe.stages["train"].config.batch_size,
            "seed": recipe.seed,
            "created": {name: run["created"] for name, run in runs.items()},
        },
        "generated": {"seeds": list(seeds), "frames": FRAMES, "size": SIZE, "stills of the shots": shots[split]},
        "clip": {"file": CLIP.name, "frames": list(CLIP_MASKS), "seen at": SIZE, "scored at": [720, 1280]},
        "propagation": {**attrs.asdict(KNNConfig(side=None)), "side": "see column grid"},
        "scores": "percent; generated: DAVIS-2017 means over objects; clip: mean over two objects in the last frame",
    }


def add_protocol(name: str, content: dict[str, Any]) -> None:
    """Put the protocol beside a result's rows."""
    path = FOLDER / f"{name}.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"protocol": content})


@attrs.frozen
class Known:
    """Scores that were computed before, in a file; delete it to have them computed again."""

    path: Path

    def __call__(self, name: str, compute: Callable[[], Score]) -> Score:
        """The score of this name."""
        if name not in self._read():
            score = attrs.asdict(compute())
            write_json(self.path, self._read() | {name: score})  # read again: another process may have added its own
        return Score(**self._read()[name])

    def _read(self) -> dict[str, dict[str, float]]:
        scores: dict[str, dict[str, float]] = {}
        if self.path.exists():
            scores = json.loads(self.path.read_text(encoding="utf-8"))
        return scores


def write_picture(path: Path, kinds: dict[str, Extractor], sequence: Filmed, clip: DrawnClip, grid: KNNConfig) -> None:
    """Carried masks: a row for each of three kinds of features, four frames of a sequence and two of the clip."""
    rows = []
    for name in ("trained in context", "trained by ERM", "encoder, stride 8"):
        pictures = []
        for frames, first, chosen in (
            (sequence.frames, sequence.masks[0], (8, 16, 23)),
            (clip.frames, clip.first, (36, 72)),
        ):
            masks = carried(kinds[name], frames, first, grid)
            pictures += [(frames[t], smaller(masks[t], SIZE)) for t in chosen]
        tinted = torch.stack([overlaid(*pair) for pair in pictures])
        rows.append((name, torch.cat(list(fitted(tinted, panel_size(SIZE, 320))), dim=2)))
    picture = torch.cat([arranged([name], [row[None]])[0] for name, row in rows], dim=1)
    cv2.imwrite(str(path), picture.permute(1, 2, 0).numpy()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])


def smaller(mask: UInt8[Tensor, "h w"], size: tuple[int, int]) -> UInt8[Tensor, "{size[0]} {size[1]}"]:
    """A mask sampled at another size."""
    return F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


if __name__ == "__main__":
    main()
