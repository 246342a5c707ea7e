"""Each mistake: one clear sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import Fourd, write_video
from safetensors.torch import load_file, save_file


def refuses(fourd: Fourd, recipe: Path, *words: object, says: tuple[str, ...], **options: object) -> None:
    """The run ends with code 2, says these words in a few lines without a traceback, and leaves no folder."""
    result = fourd("run", recipe, "--out", "out", *words, check=2, **options)
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 4, result.stderr
    for text in says:
        assert text in result.stderr, result.stderr
    assert not (recipe.parent / "out").exists()


def edited(recipe: Path, old: str, new: str) -> Path:
    """The recipe with a passage replaced."""
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    return recipe


def test_unknown_key(fourd: Fourd, toy_recipe: Path) -> None:
    refuses(
        fourd,
        edited(toy_recipe, "batch_size", "batch_sise"),
        says=("stages.train.batch_sise", "batch_size", "toy.toml:"),
    )


def test_wrong_type(fourd: Fourd, toy_recipe: Path) -> None:
    refuses(fourd, edited(toy_recipe, "steps = 40", 'steps = "many"'), says=("stages.train.steps", "many", "int"))


def test_missing_recipe(fourd: Fourd, tmp_path: Path) -> None:
    refuses(fourd, tmp_path / "no.toml", says=("no.toml",))


def test_unknown_component(fourd: Fourd, toy_recipe: Path) -> None:
    refuses(fourd, edited(toy_recipe, "toy_patches", "toy_patchs"), says=("toy_patchs", "toy_patches"))


def test_unknown_stage(fourd: Fourd, toy_recipe: Path) -> None:
    refuses(fourd, toy_recipe, "trian", says=("trian", "train"))


def test_missing_video(fourd: Fourd, toy_recipe: Path) -> None:
    refuses(fourd, toy_recipe, "--set", "data.video=missing.mp4", says=("missing.mp4",))


def test_truncated_video(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "long.mp4", frames=60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    refuses(fourd, toy_recipe, "--set", "data.video=cut.mp4", says=("cut.mp4",))


def test_text_named_mp4(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    refuses(fourd, toy_recipe, "--set", "data.video=text.mp4", says=("text.mp4",))


def test_video_without_frames(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "empty.mp4", frames=0)
    refuses(fourd, toy_recipe, "--set", "data.video=empty.mp4", says=("empty.mp4",))


def test_plugin_that_raises_on_import(fourd_process: Fourd, toy_recipe: Path, broken_plugin: Path) -> None:
    environment = {**broken_environment(broken_plugin)}
    refuses(fourd_process, edited(toy_recipe, "toy_patches", "shattered"), says=("shattered", "glass"), env=environment)
    fourd_process(
        "run", edited(toy_recipe, "shattered", "toy_patches"), "train", "--out", "fine", check=0, env=environment
    )


def test_nan_in_weights(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    weights = load_file(tmp_path / "a/train/weights.safetensors")
    name = next(key for key in weights if key.endswith("weight"))
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    refuses(fourd, toy_recipe, "predict", "--set", "weights=nan.safetensors", says=("nan.safetensors", name))


def test_weights_of_another_network(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    save_file({"somebody.else": torch.zeros(3)}, tmp_path / "other.safetensors")
    wrong = ("predict", "--set", "weights=other.safetensors")
    refuses(fourd, toy_recipe, *wrong, says=("other.safetensors", "heads.value"))


def test_output_folder_is_a_file(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = fourd("run", toy_recipe, "--out", "file/run", check=2)
    assert "--out" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_unwritable_output_folder(fourd: Fourd, toy_recipe: Path) -> None:
    # Not by permissions: the tests may run as root, to whom everything is writable but a kernel's own file systems.
    result = fourd("run", toy_recipe, "--out", "/proc/fourd-run", check=2)
    assert "/proc/fourd-run" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_folder_of_something_else(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years")
    result = fourd("run", toy_recipe, "--out", "mine", check=2)
    assert "not a run folder" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_file_size_limit_stops_in_one_sentence(fourd_process: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    result = fourd_process("run", toy_recipe, "train", "--out", "out", check=2, preexec_fn=limit)
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").rglob("*.part*"))
    fourd_process("run", toy_recipe, "train", "--out", "out", check=0)  # with room again, it goes on


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where the machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs a small file system, and mount says: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(fourd_process: Fourd, toy_recipe: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 48_000)
    result = fourd_process("run", toy_recipe, "--out", small_disk / "run", check=2)
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(small_disk.rglob("*.part*"))
    filler.unlink()


def broken_environment(folder: Path) -> dict[str, str]:
    """A shell in which the plugin of `broken_plugin` is installed too."""
    import os

    from helpers import shell_environment

    environment = shell_environment()
    return {**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment["PYTHONPATH"]])}


@pytest.fixture
def broken_plugin(tmp_path: Path) -> Path:
    """A plugin whose import raises."""
    folder = tmp_path / "site"
    info = folder / "shattered_fourd-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "shattered_fourd.py").write_text('raise RuntimeError("made of glass")\n')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shattered-fourd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fourd.plugin]\napi.1 = shattered_fourd\n[fourd.backbones]\nshattered = shattered_fourd:Backbone\n"
    )
    return folder


@pytest.mark.parametrize("named", ["a", "a/run.json", "nothing"])
def test_beside_without_results(fourd: Fourd, toy_recipe: Path, named: str) -> None:
    fourd("run", toy_recipe, "train", "--out", "a", check=0)
    refuses(fourd, toy_recipe, "evaluate", "--set", f'stages.evaluate.beside=["{named}"]', says=("beside", named))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("weights=nope.safetensors", "nope.safetensors"),
        ("device=cuda:7", "CUDA"),
        ('stages.evaluate.beside=["nowhere"]', "nowhere"),
        ('data={video="clip.mp4", view="resize", height=61, width=64}', "multiple"),
        ("data.video=missing.mp4", "missing.mp4"),
    ],
)
def test_check_finds_what_a_run_would(fourd: Fourd, toy_recipe: Path, override: str, says: str) -> None:
    answer = fourd("check", toy_recipe, "--set", override, check=2)
    assert says in answer.stderr


def test_check_says_as_what_a_folder_was_read(fourd: Fourd, toy_recipe: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set").mkdir(exist_ok=True)
        write_video(tmp_path / "set" / f"{name}.mp4", frames=6)
    said = fourd("check", toy_recipe, "--set", f"data.root={tmp_path}/set", "--set", "data.held_out=0.5", check=0)
    assert 'data: 2 video(s) in the layout "videos"; ' in said.stdout


def test_check_goes_on_where_weights_are_not_fetched_yet(
    fourd: Fourd, toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "none"))
    words = ("--set", "weights=weights:dinov2_vits14", "--set", "trained=weights:sea_raft_m")
    said = fourd("check", toy_recipe, *words, check=0).stdout
    assert "stage train: train" in said
    whole, *missing = said.partition("the recipe is whole")[2].splitlines()
    assert whole == ", except for these weights:" and len(missing) == 2
    for line, name in zip(missing, ("dinov2_vits14", "sea_raft_m"), strict=True):
        assert line.startswith(f"the weights {name} (") and line.endswith(f"fourd weights pull {name}")


def test_a_cue_that_the_recipe_lacks(fourd: Fourd, toy_recipe: Path) -> None:
    without = edited(toy_recipe, '[cues.brightness]\nuse = "toy_brightness"\n', "")
    answer = fourd("run", without, "train", "--out", "a", check=2)
    assert "the recipe has no [cues.brightness]" in answer.stderr
