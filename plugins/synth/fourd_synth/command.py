"""`fourd synth preview`: look at a generated scene and all that is known of it."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "generated scenes: fourd synth preview --seed 7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be said on the command line."""
    actions = parser.add_subparsers(dest="synth_action", required=True, metavar="ACTION")
    show = actions.add_parser("preview", help="one scene with its ground truth, as PNG or mp4")
    show.add_argument("--seed", type=int, default=0, help="of the scenes and textures (default: %(default)s)")
    show.add_argument("--number", type=int, default=0, help="which video (default: %(default)s)")
    show.add_argument("--split", choices=("train", "held_out"), default="train", help="default: %(default)s")
    show.add_argument("--pixels", type=int, default=224, help="side of the picture (default: %(default)s)")
    show.add_argument("--frames", type=int, default=24, help="frames of the video (default: %(default)s)")
    show.add_argument("--layers", action="store_true", help="flat layers instead of a scene")
    show.add_argument("--photographs", action="store_true", help="photographs of scikit-image as textures too")
    show.add_argument("--out", type=Path, default=Path("synth.png"), help="a .png or .mp4 (default: %(default)s)")


ENDINGS = (".png", ".mp4")


def run(options: argparse.Namespace) -> int:
    """Write the picture.

    Raises:
        RunError: a setting is wrong, or the file cannot be written.
    """
    from rich.console import Console

    from fourd_core.errors import RunError
    from fourd_synth.dataset import Synth
    from fourd_synth.preview import preview

    if options.out.suffix not in ENDINGS:
        raise RunError(f"synth preview: {options.out} must end in {' or '.join(ENDINGS)}")
    if not options.out.absolute().parent.is_dir():
        raise RunError(f"synth preview: the folder of {options.out} does not exist; make it first")
    try:
        config = Synth.Config(
            seed=options.seed,
            pixels=options.pixels,
            frames=options.frames,
            layers=float(options.layers),
            photographs=options.photographs,
            shading="glossy",
        )
        preview(Synth(config), options.number, options.split, options.out)
    except ValueError as error:
        raise RunError(f"synth preview: {error}") from error
    Console().print(str(options.out), soft_wrap=True)
    return 0
