"""RAFT and SEA-RAFT behind the CueProvider contract: clips, weights, sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fourd_raft import assets
from fourd_raft.cue import RAFT, SEARAFT
from safetensors.torch import save_file
from torch import Tensor

from fourd_core import registry
from fourd_core.data import Clip
from fourd_core.errors import WeightsError
from fourd_core.recipe import Location
from fourd_core.weights.assets import WeightsAsset, all_assets
from fourd_core.weights.convert import separated
from fourd_core.weights.describe import families

CUES = [RAFT, SEARAFT]


def cue(cls: Any, seed: int = 0, **change: Any) -> Any:
    torch.manual_seed(seed)
    provider = cls(attrs.evolve(cls.example(), **change))
    provider.load_pretrained()
    return provider


def clip(b: int = 1, t: int = 2, h: int = 64, w: int = 80) -> Clip:
    return Clip(torch.rand(b, t, 3, h, w, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("cls", CUES)
def test_a_clip_in_two_flows_out(cls: Any) -> None:
    provider, pair = cue(cls), clip(2, h=61, w=75)
    maps = provider(pair)
    assert (maps.kind, maps.values.shape, maps.values.dtype) == ("flow", (2, 2, 2, 61, 75), torch.float32)
    frames = pair.frames
    back = provider.network(frames[:, 1], frames[:, 0], 2)[-1][:, :2]
    torch.testing.assert_close(maps.values[:, 1], back.detach(), rtol=1e-5, atol=1e-5)
    assert not maps.values.requires_grad


@pytest.mark.parametrize("cls", CUES)
def test_iterations_and_storage_reach_the_network(cls: Any) -> None:
    pair = clip()
    usual = cue(cls)(pair).values
    assert (cue(cls, iterations=5)(pair).values - usual).abs().max() > 1e-4
    provider = cue(cls, correlation="on_the_fly")
    assert provider.network.storage == "on_the_fly"
    torch.testing.assert_close(provider(pair).values, usual, rtol=1e-5, atol=1e-5)
    assert cue(cls, volume_limit=17).network.volume_limit == 17


@pytest.mark.parametrize("cls", CUES)
def test_autocast_and_training_mode_change_nothing(cls: Any) -> None:
    provider, pair = cue(cls), clip()
    usual, before = provider(pair).values, {k: v.clone() for k, v in provider.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(provider.train()(pair).values, usual)
    assert all(torch.equal(value, before[key]) for key, value in provider.state_dict().items())


def test_batch_statistics() -> None:
    pairs = clip(2)
    collected, of_the_batch = cue(SEARAFT), cue(SEARAFT, batch_statistics=True)
    first = Clip(pairs.frames[:1])
    torch.testing.assert_close(collected(first).values, collected(pairs).values[:1], rtol=1e-5, atol=1e-5)
    assert (of_the_batch(first).values - of_the_batch(pairs).values[:1]).abs().max() > 1e-4
    assert (of_the_batch(pairs).values - collected(pairs).values).abs().max() > 1e-2


@pytest.mark.parametrize(("cls", "variant", "iterations"), [
    (RAFT, "large", 12), (RAFT, "small", 12), (SEARAFT, "s", 4), (SEARAFT, "m", 4), (SEARAFT, "l", 12),
])  # fmt: skip
def test_published_variants(cls: Any, variant: str, iterations: int) -> None:
    with torch.device("meta"):
        provider = cls(cls.Config(variant=variant))
    assert provider.iterations == iterations
    assert provider.pretrained() is None
    numbers = {"large": 5_257_536, "small": 990_162, "s": 8_883_460, "m": 19_663_876, "l": 19_663_876}
    assert sum(p.numel() for p in provider.network.parameters()) == numbers[variant]


@pytest.mark.parametrize("cls", CUES)
def test_what_it_cannot_do_is_said(cls: Any) -> None:
    with pytest.raises(ValueError, match="clips of 2 frames, got 3"):
        cue(cls)(clip(t=3))
    with pytest.raises(ValueError, match="at least 9x9 pixels, got 40x8"):
        cue(cls)(clip(h=8, w=40))
    with pytest.raises(ValueError, match="iterations"):
        cls.Config(iterations=-1)


def test_widths_that_do_not_fit_the_variant() -> None:
    with pytest.raises(ValueError, match=r"size\.correlation: the small network has 1 such layers"):
        RAFT.Config(variant="small", size=RAFT.example().size)


def same(provider: Any, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in provider.network.state_dict().items())


@pytest.mark.parametrize("cls", CUES)
def test_files_as_they_are_published(cls: Any, tmp_path: Path) -> None:
    state = cue(cls, seed=1).network.state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "parallel.pth")
    once = {key: value for key, value in state.items() if ".norm3." not in key and ".bn3." not in key}
    assert len(once) < len(state)
    save_file(separated(once), tmp_path / "model.safetensors")
    whole_run = {f"flow.model.{key}": value for key, value in state.items()} | {"latent_head.weight": torch.ones(2)}
    torch.save({"state_dict": whole_run}, tmp_path / "lila.pt")
    assert not same(cue(cls), state)
    for name in ("parallel.pth", "model.safetensors", "lila.pt"):
        provider = cue(cls, weights=Location(str(tmp_path / name)))
        assert same(provider, state), name
        named = provider.pretrained()
        assert named is not None
        assert named.location.endswith(name)


@pytest.mark.parametrize(("given", "wanted", "sentence"), [
    (RAFT.Config(variant="small"), RAFT.Config(), 'It looks like use = "raft", variant = "small": write that'),
    (RAFT.Config(), RAFT.Config(variant="small"), 'It looks like use = "raft", variant = "large": write that'),
    (RAFT.Config(variant="small"), SEARAFT.Config(variant="s"), 'It looks like use = "raft", variant = "small"'),
    (SEARAFT.Config(variant="s"), RAFT.Config(variant="small"), 'It looks like use = "sea_raft", variant = "s"'),
])  # fmt: skip
def test_another_networks_file_is_named(given: Any, wanted: Any, sentence: str, tmp_path: Path) -> None:
    kinds = {RAFT.Config: RAFT, SEARAFT.Config: SEARAFT}
    save_file(separated(kinds[type(given)](given).network.state_dict()), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError) as caught:
        cls = kinds[type(wanted)]
        cls(attrs.evolve(wanted, weights=Location(str(tmp_path / "other.safetensors")))).load_pretrained()
    assert "other.safetensors does not fit this network" in str(caught.value)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 900


def test_the_entry_points_name_them() -> None:
    assert registry.load("cues", "raft") is RAFT
    assert registry.load("cues", "sea_raft") is SEARAFT


def test_published_files_are_known_and_told_apart() -> None:
    known, broken = all_assets()
    ours = {item.asset.name: item.asset for item in known if item.short_distribution == "raft"}
    assert not [item for item in broken if "raft" in item.distribution]
    assert ours == {a.name: a for a in vars(assets).values() if isinstance(a, WeightsAsset)}
    assert all(asset.url is None or asset.url.endswith(asset.file_name) for asset in ours.values())
    with torch.device("meta"):
        states = {
            "sea_raft_m": SEARAFT(SEARAFT.Config()), "sea_raft_s": SEARAFT(SEARAFT.Config(variant="s")),
            "raft_small": RAFT(RAFT.Config(variant="small")),
        }  # fmt: skip
        large = RAFT(RAFT.Config()).network.state_dict()
    for name, provider in states.items():
        found = families(f"module.{key}" for key in provider.network.state_dict())
        assert [text.split()[0] for text in found] == [name]
    assert [text.split()[0] for text in families(large)] == ["raft_sintel", "raft_things"]
