"""docs/rewrites.md lists the rewrites that exist, with what each saves; those of geometry equal the published forms."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from helpers import ROOT
from torch import Tensor

from fourd_core.geometry import alignment, cameras, numerics
from fourd_core.geometry.alignment import FIVE_SUMS
from fourd_core.geometry.cameras import SAMPLED_ONLY
from fourd_core.geometry.numerics import ALL_ROTATIONS
from fourd_core.rewrites import Rewrite

PAGE = (ROOT / "docs/rewrites.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def declared() -> dict[str, str]:
    """Names and sentences of all rewrites in the core and its plugins."""
    found: dict[str, str] = {}
    for package in (ROOT / "fourd_core", *ROOT.glob("plugins/*/fourd_*/")):
        for path in package.rglob("*.py"):
            if re.search(r"^[A-Z_]+ = Rewrite\(", path.read_text(encoding="utf-8"), re.MULTILINE):
                module = importlib.import_module(".".join(path.relative_to(package.parent).with_suffix("").parts))
                found |= {x.name: x.saves for x in vars(module).values() if isinstance(x, Rewrite)}
    return found


def test_the_page_lists_what_there_is() -> None:
    wanted = declared()
    rows = {name: saves for name, _, _, saves in ROW.findall(PAGE) if name != "rewrite"}
    assert rows == wanted
    assert len(wanted) >= 10
    assert wanted.keys() <= Rewrite.known.keys()


def test_the_page_s_python_runs() -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    exec(compile(source, "docs/rewrites.md", "exec", dont_inherit=True), scope)
    torch.testing.assert_close(scope["ours"], scope["published"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rotations_one_by_one(monkeypatch: Any) -> None:
    matrices = noise(2, 5, 3, 3).requires_grad_()
    calls = []
    monkeypatch.setattr(torch.linalg, "svd", lambda x, svd=torch.linalg.svd: calls.append(x.shape) or svd(x))

    def answer() -> tuple[Tensor, Tensor]:
        rotation = numerics.closest_rotation(matrices)
        return rotation, torch.autograd.grad((rotation * noise(3, 3, seed=1)).sum(), matrices)[0]

    ours = answer()
    with ALL_ROTATIONS.off():
        published = answer()
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-12)
    assert calls == [(2, 5, 3, 3)] + 10 * [(3, 3)]


def test_points_of_all_pixels() -> None:
    depth, k = noise(2, 3, 4, 5).exp().requires_grad_(), torch.eye(3).double() + 0.1 * noise(2, 3, 3, 3).triu()
    poses = cameras.rigid(numerics.closest_rotation(noise(2, 3, 3, 3, seed=2)), noise(2, 3, 3, seed=3))
    index = torch.tensor([0, 59, 7, 21, 7])

    def answer() -> tuple[Tensor, Tensor]:
        points = cameras.sampled_points(depth, k, poses, index)
        return points, torch.autograd.grad(points.square().sum(), depth)[0]

    ours = answer()
    with SAMPLED_ONLY.off():
        published = answer()
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-12)


def test_a_general_solver_for_scale_and_shift() -> None:
    source = noise(3, 40).requires_grad_()
    target = (2 * source.detach() - 1 + 0.1 * noise(3, 40, seed=1)).requires_grad_()
    weights = noise(3, 40, seed=2).clamp(min=0)

    def answer() -> list[Tensor]:
        fit = alignment.fit_affine(source, target, weights)
        return [*fit, *torch.autograd.grad((fit.scale * fit.shift).sum(), (source, target))]

    ours = answer()
    with FIVE_SUMS.off():
        published = answer()
    torch.testing.assert_close(ours, published, rtol=1e-11, atol=1e-12)
    assert any(not torch.equal(a, b) for a, b in zip(ours, published, strict=True))
