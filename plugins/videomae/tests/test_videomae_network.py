"""The network against stored numbers, names and shapes of the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fourd_videomae.backbone import VideoMAE
from fourd_videomae.network import VisionTransformer, sinusoid_table
from fourd_videomae.sizes import SIZES, Size
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
NARROW = Size(embed_dim=32, depth=3, heads=2, patch=(2, 8, 8))


def seeded(size: Size = NARROW, checkpointing: bool = False) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(size, checkpointing)


def randomised(size: Size = NARROW) -> VisionTransformer:
    """Every parameter is random: no bias is 0 and no norm's weight 1."""
    network, generator = seeded(size).double(), torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        spread = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data += spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def random_frames(t: int, h: int, w: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, t, 3, h, w, generator=torch.Generator().manual_seed(1))


def norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def block(x: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    """A block as it is described, one head at a time: queries and values with a bias, keys without; GELU by erf."""
    dim = x.shape[-1]
    width = dim // heads
    kernels = p["attn.qkv.weight"]
    y, mixed = norm(x, p, "norm1"), []
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        q = y @ kernels[:dim][rows].mT + p["attn.q_bias"][rows]
        k = y @ kernels[dim : 2 * dim][rows].mT
        v = y @ kernels[2 * dim :][rows].mT + p["attn.v_bias"][rows]
        mixed.append((q @ k.mT * width**-0.5).softmax(-1) @ v)
    x = x + torch.cat(mixed, -1) @ p["attn.proj.weight"].mT + p["attn.proj.bias"]
    hidden = norm(x, p, "norm2") @ p["mlp.fc1.weight"].mT + p["mlp.fc1.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden * 0.5**0.5))
    return x + hidden @ p["mlp.fc2.weight"].mT + p["mlp.fc2.bias"]


def test_every_tap_is_what_the_blocks_before_it_give() -> None:
    """The whole network written out; L4P's plugin compares it with the reference's numbers."""
    network, frames = randomised(), random_frames(4, 24, 16, batch=2).double()
    with torch.no_grad():
        taps = network(frames, [0, 1, 2, 3])
        x = network.embed(frames)
        torch.testing.assert_close(taps[0], x, rtol=0, atol=0)
        for number, module in enumerate(network.blocks, 1):
            parameters = dict(module.named_parameters())
            x = block(x, parameters, heads=2)
            wanted = norm(x, dict(network.named_parameters()), "norm") if number == 3 else x
            torch.testing.assert_close(taps[number], wanted, rtol=1e-10, atol=1e-10)


def test_constants_that_ordinary_numbers_do_not_show() -> None:
    network = seeded()
    assert {module.eps for module in network.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    nearly_flat = torch.arange(32.0)[None] * 1e-4  # variance 8.5e-7, which 1e-6 more than halves
    centred = nearly_flat - nearly_flat.mean()
    torch.testing.assert_close(network.norm(nearly_flat), centred / (centred.square().mean() + 1e-6).sqrt())


def test_position_table() -> None:
    stored = load_file(DATA / "position_table_g.safetensors")
    table = sinusoid_table(2048, 1408)
    assert table.dtype == torch.float32
    assert torch.equal(table[stored["in/rows"]], stored["out/table_rows"])
    torch.testing.assert_close(table.double().sum(1), stored["out/table_rowsum"], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(table.double().sum(0), stored["out/table_colsum"], rtol=1e-12, atol=1e-9)
    assert torch.equal(sinusoid_table(5, 7), sinusoid_table(9, 7)[:5])


def test_position_table_is_made_once_and_fits_every_clip() -> None:
    network = seeded()
    small, large = torch.empty(1, 6, 32), torch.empty(2, 40, 32)
    for tokens in (small, large, small, large.to("meta"), large):
        table = network.positions(tokens, (1, 2, tokens.shape[1] // 2))[0]
        assert table.shape == tokens.shape[1:]
        assert table.device == tokens.device
        if not table.is_meta:
            assert torch.equal(table, sinusoid_table(tokens.shape[1], 32))
    first, second = network.positions(small, (1, 2, 3)), network.positions(large, (2, 4, 5))
    assert first.data_ptr() == second.data_ptr()
    assert not [key for key in network.state_dict() if "table" in key]


def test_a_small_clip_stands_in_a_large_grid() -> None:
    """In its middle; in training anywhere, each clip of a batch elsewhere, its tokens side by side."""
    network = seeded(Size(embed_dim=32, depth=1, heads=2, patch=(2, 8, 8), grid=(4, 5, 6)))
    whole = sinusoid_table(4 * 5 * 6, 32).view(4, 5, 6, 32)
    tokens = torch.empty(50, 2 * 2 * 3, 32)
    assert torch.equal(network.positions(torch.empty(2, 120, 32), (4, 5, 6))[0], whole.flatten(0, 2))
    network.eval()
    assert torch.equal(network.positions(tokens, (2, 2, 3)), whole[1:3, 1:3, 1:4].reshape(1, 12, 32))
    network.train()
    blocks = {(t, r, c): whole[t : t + 2, r : r + 2, c : c + 3] for t in range(3) for r in range(4) for c in range(4)}
    drawn = network.positions(tokens, (2, 2, 3)).view(50, 2, 2, 3, 32)
    found = [[place for place, block in blocks.items() if torch.equal(block, one)] for one in drawn]
    assert all(len(places) == 1 for places in found)
    assert [{places[0][axis] for places in found} for axis in range(3)] == [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3}]
    too_large = network.positions(torch.empty(1, 5 * 5 * 6, 32), (5, 5, 6))  # as without a stated grid
    assert torch.equal(too_large[0], sinusoid_table(150, 32))


def test_the_last_blocks_end_with_the_norm() -> None:
    network = seeded()
    backbone = VideoMAE(VideoMAE.Config(size=NARROW))
    assert [*backbone.last_blocks(2)] == [*backbone.network.blocks[1:], backbone.network.norm]
    with pytest.raises(ValueError, match=f"{len(network.blocks)} blocks, not 4"):
        backbone.last_blocks(4)


def test_names_shapes_and_count_of_the_released_encoder() -> None:
    patterns = json.loads((DATA / "official_keys_g.json").read_text())
    published = {key.replace(".N.", f".{i}."): shape for key, shape in patterns.items() for i in range(40)}
    with torch.device("meta"):
        network = VisionTransformer(SIZES["g"])
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == published
    assert len(published) == 524
    assert sum(p.numel() for p in network.parameters()) == 1_011_610_752


@pytest.mark.parametrize(
    ("name", "millions", "width"), [("s", 22, 64), ("b", 87, 64), ("l", 305, 64), ("h", 633, 80), ("g", 1012, 88)]
)
def test_sizes_of_the_papers(name: str, millions: int, width: int) -> None:
    """`width` is that of an attention head, which no checkpoint tells."""
    with torch.device("meta"):
        network = VisionTransformer(SIZES[name])
    count = sum(p.numel() for p in network.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)  # the papers count a classifier's last layer too
    assert {SIZES[name].embed_dim // block.attn.heads for block in network.blocks} == {width}


def test_an_mlps_width_is_rounded_down() -> None:
    assert Size(embed_dim=96, depth=1, heads=4, mlp_ratio=48 / 11).mlp_dim == 418  # 418.9
    assert SIZES["g"].mlp_dim == 6144


def test_every_tap_alone_equals_all_together() -> None:
    network, frames = seeded(), random_frames(4, 24, 16)
    with torch.no_grad():
        together = network(frames, [3, 1, 0, 2])
        assert sorted(together) == [0, 1, 2, 3]
        for tap, values in together.items():
            alone = network(frames, [tap])
            assert list(alone) == [tap]
            assert torch.equal(alone[tap], values)


def test_nothing_deeper_than_the_deepest_tap_is_run() -> None:
    network, ran = seeded(), []
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    network.norm.register_forward_hook(lambda *_: ran.append("norm"))
    network(random_frames(2, 8, 8), [0])
    assert ran == []
    network(random_frames(2, 8, 8), [2, 1])
    assert ran == [0, 1]
    network(random_frames(2, 8, 8), [3])
    assert ran == [0, 1, 0, 1, 2, "norm"]


def test_the_last_tap_alone_is_normalised() -> None:
    network, frames = seeded(), random_frames(4, 16, 16)
    with torch.no_grad():
        before = network(frames, [0, 1, 2, 3])
        raw = network.blocks[2](before[2])
        assert torch.equal(before[3], network.norm(raw))
        network.norm.bias += 1
        after = network(frames, [0, 1, 2, 3])
    assert [torch.equal(before[tap], after[tap]) for tap in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("size", [(2, 8, 8), (6, 24, 8), (10, 8, 56), (4, 40, 24)])
def test_clips_of_any_size(size: tuple[int, int, int]) -> None:
    """Each token is its own patch of the clip, in (t, h, w) order, plus its number's position."""
    network, frames = seeded(), random_frames(*size, batch=2)
    t, h, w = size[0] // 2, size[1] // 8, size[2] // 8
    with torch.no_grad():
        tokens = network(frames, [0, 3])
        kernel = network.patch_embed.proj.weight.flatten(1)
        patches = frames.transpose(1, 2).reshape(2, 3, t, 2, h, 8, w, 8).permute(0, 2, 4, 6, 1, 3, 5, 7)
        by_hand = patches.reshape(2, t * h * w, -1) @ kernel.mT + network.patch_embed.proj.bias
    assert tokens[3].shape == (2, t * h * w, 32)
    torch.testing.assert_close(tokens[0], by_hand + sinusoid_table(t * h * w, 32), rtol=1e-5, atol=1e-5)


def test_checkpointing_changes_no_number_and_computes_twice() -> None:
    frames, results, runs = random_frames(4, 16, 24), [], []
    for checkpointing in (False, True):
        network, ran = seeded(checkpointing=checkpointing), []
        for block in network.blocks:
            block.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        outputs = network(frames, [1, 3])
        (outputs[1].square().mean() + outputs[3].square().sum()).backward()
        results.append((outputs, {name: p.grad for name, p in network.named_parameters()}))
        runs.append(len(ran))
    (plain, gradients), (saved, saved_gradients) = results
    assert runs == [3, 6]
    for tap in (1, 3):
        assert torch.equal(plain[tap], saved[tap])
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(saved_gradients[name], gradient, rtol=1e-6, atol=1e-7)


def test_every_parameter_learns() -> None:
    network = seeded()
    network(random_frames(4, 16, 16), [3])[3].pow(3).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_trains_after_it_has_predicted() -> None:
    network, frames = seeded(), random_frames(4, 16, 16)
    with torch.inference_mode():
        predicted = network(frames, [3])[3].clone()
    trained = network(frames, [3])[3]
    trained.sum().backward()
    assert torch.equal(trained.detach(), predicted)


def test_half_precision() -> None:
    network, frames = seeded(), random_frames(4, 32, 32)
    with torch.no_grad():
        exact = network(frames, [0, 3])
        with torch.autocast("cpu", torch.bfloat16):
            patches, mixed = network.patch_embed(frames), network(frames, [0, 3])
        half = network.bfloat16()(frames.bfloat16(), [0, 3])
    # Positions are not rounded to the precision of autocast.
    assert patches.dtype == torch.bfloat16
    assert torch.equal(mixed[0], patches + sinusoid_table(32, 32))
    for tap in (0, 3):
        assert (mixed[tap].dtype, half[tap].dtype) == (torch.float32, torch.bfloat16)
        for rounded in (mixed[tap], half[tap].float()):
            assert (rounded - exact[tap]).norm() < 0.02 * exact[tap].norm()
