"""LILA's published checkpoints: every official name finds its place, whatever else training left in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fourd_lila.assets import VITB, VITL, VITL_KTS, VITS
from fourd_lila.checkpoints import to_recipe
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.build import build_system
from fourd_core.data import Clip
from fourd_core.errors import WeightsError
from fourd_core.recipe import load_recipe, parse
from fourd_core.weights.convert import for_recipe, licence_of

ROOT = Path(__file__).parents[1]
ENCODERS = json.loads((ROOT / "plugins/dinov2/tests/data/official_keys.json").read_text())
DECODERS = json.loads((ROOT / "plugins/dpt3d/tests/data/official_keys.json").read_text())
STORED = ROOT / "tests/data/lila/lila_tiny_model.safetensors"
TEACHERS = {
    "depth_net.pretrained.cls_token": torch.ones(1, 1, 1024),
    "depth_net.depth_head.scratch.output_conv1.weight": torch.ones(2),
    "flow.model.cnet.conv1.weight": torch.ones(3),
    "pamr.0._orig_mod.gather_9.kernel": torch.ones(9),
    "pamr.2._orig_mod.gather_8.kernel": torch.ones(8),
}
TINY = """
weights = "{weights}"
[data]
video = "clip.mp4"
[backbone]
use = "dinov2"
{encoder}
[backbone.size]
embed_dim = 32
depth = 4
heads = 2
image_size = 70
[heads.features]
use = "pixel_decoder"
taps = [0, 1, 2, 3]
features = 16
out_channels = [8, 12, 16, 20]
"""


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_all_official_names_find_their_place(size: str) -> None:
    names = {f"pretrained.{name}": shape for name, shape in ENCODERS[f"vit{size}14"].items()} | DECODERS[size]
    published = {name: torch.empty(shape, device="meta") for name, shape in names.items()} | TEACHERS
    with torch.device("meta"):
        system = build_system(load_recipe(ROOT / f"recipes/lila_vit{size}14.toml"))
    own = {
        name: tuple(value.shape)
        for name, value in system.state_dict().items()
        if name.startswith(("backbone.", "heads.features."))
    }
    assert own.pop("backbone.network.pos_embed") == (1, 1370, own["backbone.network.cls_token"][-1])
    assert {name: tuple(value.shape) for name, value in to_recipe(published).items()} == own


def test_the_largest_decoder_fits_too() -> None:
    recipe = parse(
        '[data]\nvideo = "clip.mp4"\n[backbone]\nuse = "dinov2"\nvariant = "g"\n'
        '[heads.features]\nuse = "pixel_decoder"\n'
        "taps = [9, 19, 29, 39]\nfeatures = 768\nout_channels = [1536, 1536, 1536, 1536]\n"
    )
    with torch.device("meta"):
        system = build_system(recipe)
    names = {f"pretrained.{name}": shape for name, shape in ENCODERS["vitg14"].items()} | DECODERS["g"]
    published = to_recipe({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    own = {name: tuple(value.shape) for name, value in system.state_dict().items()}
    del own["backbone.network.pos_embed"]
    assert {name: tuple(value.shape) for name, value in published.items()} == own


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(STORED)


@pytest.fixture
def files(stored: dict[str, Tensor], tmp_path: Path) -> tuple[Path, Path]:
    """DINOv2's own file, and what LILA's training saves: with teachers, and positions that are not to be used."""
    lila = {key.removeprefix("sd."): value.clone() for key, value in stored.items() if key.startswith("sd.")}
    encoder = {k.removeprefix("pretrained."): v for k, v in lila.items() if k.startswith("pretrained.")}
    torch.save(encoder, tmp_path / "dinov2_pretrain.pth")
    spoiled = {"pretrained.pos_embed": torch.full((1, 5, 32), 9.0)}
    torch.save({"state_dict": lila | TEACHERS | spoiled}, tmp_path / "lila_dino2.pt")
    return tmp_path / "dinov2_pretrain.pth", tmp_path / "lila_dino2.pt"


def features(stored: dict[str, Tensor], weights: Path, encoder: str) -> Tensor:
    system = build_system(parse(TINY.format(weights=weights, encoder=encoder)))
    spec = system.backbone.spec
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    clip = Clip((stored["56x84.x"] * std + mean)[:, None])
    return system(clip).features[:, 0, :, 1::3, 1::3]


@torch.no_grad()
def test_a_whole_training_state_gives_the_references_features(
    stored: dict[str, Tensor], files: tuple[Path, Path]
) -> None:
    found = features(stored, files[1], f'weights = "{files[0]}"')
    expected = stored["56x84.dec"]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@torch.no_grad()
def test_a_file_without_the_encoder_takes_dinov2s(stored: dict[str, Tensor], files: tuple[Path, Path]) -> None:
    state = torch.load(files[1], weights_only=True)["state_dict"]
    stripped = files[1].with_name("stripped.pt")
    torch.save({k: v for k, v in state.items() if k.startswith(("latent_head.", "fnorm."))}, stripped)
    found = features(stored, stripped, f'weights = "{files[0]}"')
    expected = stored["56x84.dec"]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_without_dinov2s_file_the_positions_are_missing(stored: dict[str, Tensor], files: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsError, match=r"missing \(network.pos_embed\).*give that section weights of its own too"):
        features(stored, files[1], "")


def test_the_file_is_recognised_and_its_licence_told(files: tuple[Path, Path]) -> None:
    assert {name.split(".")[0] for name in for_recipe(str(files[1]))} == {"backbone", "heads"}
    assert licence_of(str(files[1])) == VITS.terms


def test_what_is_no_part_of_lila_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"no part is called task_heads\.x"):
        to_recipe({"task_heads.x": torch.zeros(1)})


def test_the_published_files_have_their_places() -> None:
    folder = "https://storage.googleapis.com/gresearch/lila-ckpts/"
    assert [asset.url for asset in (VITS, VITB, VITL, VITL_KTS)] == [
        f"{folder}lila_dino2_s14_ytvos.pt",
        f"{folder}lila_dino2_b14_ytvos.pt",
        f"{folder}lila_dino2_l14_ytvos.pt",
        f"{folder}lila_dino2_l14_kts.pt",
    ]
