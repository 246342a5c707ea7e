"""`fourd view`: the 4D page of a video that a run has predicted."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path

from fourd_core.build import build_dataset
from fourd_core.errors import RunError
from fourd_core.interfaces import Video
from fourd_core.media.arrays import ArrayStore, stored_view
from fourd_core.media.outputs import named, queries_path
from fourd_core.queries import queries_for
from fourd_core.recipe import Location, Recipe
from fourd_core.recipe.schema import QueriesConfig
from fourd_core.report.page import write_report
from fourd_core.run_folder import read_recipe
from fourd_core.viewer.page import check_viser, page_path, write_viewer


def run_view(run: Path, name: str | None, frames: int, out: Path | None, open_it: bool) -> int:
    """Write the page and say where it is; without `out` it goes beside the arrays, and the report links to it.

    Args:
        name: of the video, as its files are called, if the run has several; `stage/name` if several stages have it.
        open_it: whether to show the page in the system's browser.
    Raises:
        FourdError: what is wrong and what to do.
    """
    check_viser()
    recipe = read_recipe(run) if (run / "recipe.toml").exists() else None
    if recipe is None:
        raise RunError(f"{run} is not a run folder: it has no recipe.toml")
    folder = _chosen(run, name)
    video = _video(recipe, folder)
    store = ArrayStore(folder)
    listed = queries_path(folder.parent, folder.stem)
    queries = None
    if listed.exists():
        queries = queries_for(QueriesConfig(file=Location(str(listed))), video, stored_view(store))
    path = out or page_path(folder.parent, folder.stem)
    scene = write_viewer(store, video, path, queries, frames)
    if out is None:
        write_report(run)
    sys.stdout.write(f"viewer: {path} ({path.stat().st_size / 1e6:.1f} MB; {'; '.join(scene.notes)})\n")
    if open_it:
        webbrowser.open(path.resolve().as_uri())
    return 0


def _chosen(run: Path, name: str | None) -> Path:
    """The folder of the arrays to show."""
    folders = sorted(run.glob("*/*.zarr"))
    found = {f"{folder.parent.name}/{folder.stem}": folder for folder in folders}
    if name is not None:
        found = {key: folder for key, folder in found.items() if name in (key, folder.stem)}
    if not found:
        what = "no predictions" if name is None else f"no predictions of a video '{name}'"
        there = ", ".join(folder.stem for folder in folders)
        raise RunError(f"{run} holds {what}" + (f"; it has: {there}" if there else "; run its predict stage first"))
    if len(found) > 1:
        raise RunError(f"{run} holds predictions of several videos; name one with --video: {', '.join(found)}")
    (folder,) = found.values()
    # Not through ArrayStore, which would drop what a process at work has not committed yet.
    if not json.loads((folder / "zarr.json").read_text(encoding="utf-8")).get("attributes", {}).get("complete"):
        raise RunError(f"the predictions in {folder} are not finished; repeat the command that began it")
    return folder


def _video(recipe: Recipe, folder: Path) -> Video:
    videos = named(build_dataset(recipe).videos("all"))
    if folder.stem not in videos:
        raise RunError(
            f"{folder} was predicted from a video that the data no longer holds; it has: {', '.join(videos)}"
        )
    return videos[folder.stem]
