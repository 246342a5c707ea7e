"""recipes/l4p_add_motion_seg.toml: a head is added to weights that are there, and nothing else changes by a bit."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import fourd_core as fourd
from fourd_core.build import build_dataset, build_system
from fourd_core.data import Clip, Predictions, Queries
from fourd_core.errors import RecipeError, RunError
from fourd_core.media.writers import write_png
from fourd_core.recipe import Recipe, load_recipe
from fourd_core.run import run_recipe
from fourd_core.system import System
from fourd_core.testing import example_clip

RECIPES = Path(__file__).parents[3] / "recipes"
STORED = Path(__file__).parent / "data/model_e2e.safetensors"
DECODER = ("features=8", "last=4", "layer_dims=[8,8,12,12]", "taps=[2,3,4,5]")
SMALL = (
    "backbone.size={embed_dim=48, depth=6, heads=4, patch=[2,14,14], mlp_ratio=4.363636363636363}",
    *(f"heads.{head}.{key}" for head in ("depth", "flow", "cameras") for key in DECODER),
    "heads.track.mlp=64",
    "data.pixels=56",
    "queries.grid=2",
    "threads=1",
)
STEPS = (
    *(f"heads.moving.{key}" for key in DECODER),
    *(f"stages.train.{key}" for key in ("steps=2", "batch_size=1", "warmup=0", "lr=0.01")),
    "stages.predict.movie=false",
    "stages.predict.pictures=1",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's weights under the published names, the published motion head among them."""
    with safe_open(STORED, "pt") as handle:
        state = {key[3:]: handle.get_tensor(key) for key in handle.keys() if key.startswith("sd/")}  # noqa: SIM118
    path = tmp_path_factory.mktemp("published") / "l4p.ckpt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of something, and masks for them."""
    folder = tmp_path_factory.mktemp("media")
    frames = (example_clip(1, 24, 56, 56).frames[0] * 255).byte()
    for name, pictures in (("video", frames), ("masks", (frames > 128).all(1, keepdim=True).expand(-1, 3, -1, -1))):
        (folder / name).mkdir()
        for number, picture in enumerate(pictures):
            write_png(folder / name / f"{number:02}.png", picture.byte() * (255 if name == "masks" else 1))
    return folder


def recipe(weights: Path, media: Path, *more: str) -> Recipe:
    places = (f"weights={weights}", f"data.video={media}/video", f"stages.train.objective.masks={media}/masks")
    return load_recipe(RECIPES / "l4p_add_motion_seg.toml", [*SMALL, *STEPS, *places, *more])


@pytest.fixture(scope="module")
def run(weights: Path, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole recipe's run."""
    folder = tmp_path_factory.mktemp("runs") / "moving"
    run_recipe(recipe(weights, media), folder)
    return folder


def answers(system: System) -> Predictions:
    queries = Queries(torch.tensor([[0, 3, 9]]), torch.tensor([[[9.0, 30.0], [40.5, 12.25], [28.0, 28.0]]]))
    clip = attrs.evolve(example_clip(1, 16, 56, 56, seed=4), queries=queries)
    with torch.no_grad():
        predictions: Predictions = system.eval()(clip)
    return predictions


def test_the_other_heads_say_what_they_said_before(run: Path, weights: Path) -> None:
    decoder = [f"heads.motion.{key}" for key in DECODER]
    published = build_system(load_recipe(RECIPES / "l4p_full.toml", [*SMALL, *decoder, f"weights={weights}"]))
    extended = fourd.load(run)
    before, after = answers(published), answers(extended)
    assert set(before) - set(after) == {"motion"} and set(after) - set(before) == {"moving"}
    for name in ("depth", "flow", "cameras", "track"):
        tensors = after[name].tensors()
        assert tensors
        for field, value in before[name].tensors().items():
            assert torch.equal(value, tensors[field]), f"{name}.{field}"
    state = extended.state_dict()
    for key, value in published.state_dict().items():
        assert key.startswith("heads.motion.") or torch.equal(value, state[key]), key


def test_the_new_head_started_at_random_and_learned(
    run: Path, weights: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def moving(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if key.startswith("heads.moving.")}

    start = build_system(recipe(weights, media))
    assert f"{weights} has nothing for heads.moving, which starts untrained" in capsys.readouterr().err
    unread = build_system(recipe(weights, media, "weights=none"))
    fresh, learned = moving(start.state_dict()), moving(load_file(run / "train/weights.safetensors"))
    assert fresh.keys() == learned.keys() and len(fresh) > 10
    for key, value in moving(unread.state_dict()).items():
        assert torch.equal(value, fresh[key]), key
    changed = [key for key, value in fresh.items() if not torch.equal(value, learned[key])]
    assert len(changed) > 0.8 * len(fresh)


def test_the_prediction_is_that_of_the_trained_head(run: Path) -> None:
    """It comes after the training, and has the other tasks beside the new one."""
    import zarr

    store = zarr.open_group(run / "predict/video.zarr", mode="r")
    assert {"depth", "flow", "moving"} <= set(store.keys()) and "motion" not in store
    system = fourd.load(run)
    video = system.recipe.data.config.video if system.recipe else ""
    predicted = system.predict(video).moving[0]
    stored = torch.from_numpy(store["moving"][:]).float()  # type: ignore[index]
    torch.testing.assert_close(stored, predicted, rtol=0, atol=1e-3)


def test_the_masks_must_be_named() -> None:
    with pytest.raises(RecipeError, match=r"stages\.train\.objective\.masks: missing"):
        load_recipe(RECIPES / "l4p_add_motion_seg.toml")


def test_to_learn_one_head_from_another_ones_error_is_refused(weights: Path, media: Path, tmp_path: Path) -> None:
    """`learn` names a head that the loss does not reach: without a word, nothing would be learned."""
    wrong = recipe(weights, media, 'stages.train.learn=["depth"]')
    with pytest.raises(RunError, match=r"\[stages\.train\] no gradient reaches what learns \(depth\)"):
        run_recipe(wrong, tmp_path / "run", ["train"])


def test_a_window_of_the_system_is_a_sample(weights: Path, media: Path) -> None:
    """The recipe's objective reads windows as long as the network's own, in the view of the prediction."""
    settled = recipe(weights, media, "weights=none")
    assert list(settled.stages) == ["train", "predict"] and settled.stages["train"].config.learn == ("moving",)
    objective = build_system(settled).objectives["train"]
    sample = objective.sample(build_dataset(settled), "train", torch.Generator().manual_seed(0))  # type: ignore[operator]
    assert sample["frames"].shape == (16, 3, 56, 56) and sample["moving"].shape == (16, 56, 56)
    assert Clip(sample["frames"][None]).size == (56, 56)
