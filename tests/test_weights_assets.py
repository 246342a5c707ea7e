"""Weights that plugins know: found, chosen by name, and never the reason why something else does not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import shell_environment
from weights_parts import ONLY_FAKES, install_asset

from fourd_core.errors import WeightsError
from fourd_core.recipe.values import read_location
from fourd_core.weights import WeightsAsset, read_state_dict
from fourd_core.weights.assets import all_assets, find
from fourd_core.weights.cache import path_of, weights_folder

GOOD: dict[str, Any] = {"name": "tiny", "summary": "s", "licence": "MIT", "source": "paper", "file_name": "tiny.ckpt"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for installed plugins."""
    monkeypatch.setenv("FOURD_PLUGINS", ONLY_FAKES)
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


def refusal(name: str) -> str:
    with pytest.raises(WeightsError) as caught:
        find(name)
    return str(caught.value)


def test_found_by_its_name(site: Path) -> None:
    install_asset(site, "fourd-plugin-acme", name="tiny", noncommercial=True, licence="CC-BY-NC-4.0", size=12)
    known = find("tiny")
    assert (known.asset.size, known.asset.terms) == (12, "CC-BY-NC-4.0 (non-commercial use only)")
    assert (known.distribution, known.full_name) == ("fourd-plugin-acme", "acme:tiny")
    assert path_of(known) == weights_folder() / "acme" / "tiny" / "tiny.ckpt"
    assert find("acme:tiny") == find("fourd-plugin-acme:tiny") == known
    assert "did you mean tiny?" in refusal("tinny")
    assert "there are: " in refusal("something_else") and "tiny" in refusal("something_else")


def test_two_plugins_with_one_name(site: Path) -> None:
    install_asset(site, "acme-one", summary="the one")
    install_asset(site, "acme-two", summary="the other")
    assert 'ambiguous, more than one distribution has them; write "acme-one:tiny" or "acme-two:tiny"' in refusal("tiny")
    one, two = find("acme-one:tiny"), find("acme-two:tiny")
    assert (one.asset.summary, two.asset.summary) == ("the one", "the other")
    assert path_of(one) != path_of(two)


def test_what_is_broken_harms_nobody(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_asset(site, "acme-good", name="good")
    install_asset(site, "acme-raises", name="raises", code="raise RuntimeError('no luck')")
    install_asset(site, "acme-leaves", name="leaves", code="import sys; sys.exit(3)")
    install_asset(site, "acme-path", name="path", file_name="../../escape.ckpt")
    install_asset(site, "acme-other", name="other", code="ASSET = 'not an asset'")
    install_asset(site, "acme-named", name="named", code="import attrs; ASSET = attrs.evolve(ASSET, name='renamed')")
    install_asset(site, "acme-new", name="new")
    points = site / "acme_new-1.2.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("api.1", "api.9"))
    known, broken = all_assets()
    assert "good" in [item.asset.name for item in known]
    problems = {item.name: item.problem for item in broken if item.distribution.startswith("acme-")}
    assert problems.keys() == {"raises", "leaves", "path", "other", "named", "new"}
    assert problems["raises"] == "cannot be imported: RuntimeError: no luck; update or uninstall acme-raises"
    assert "SystemExit: 3" in problems["leaves"]
    assert 'found "../../escape.ckpt", expected the plain name of a file' in problems["path"]
    assert "is no fourd_core.weights.WeightsAsset" in problems["other"]
    assert 'its entry point is called "named" and its asset "renamed"' in problems["named"]
    assert "version 9 of fourd's interfaces" in problems["new"]
    assert "cannot be used: cannot be imported: RuntimeError: no luck" in refusal("raises")
    monkeypatch.setenv("FOURD_PLUGINS", "acme-good")
    known, broken = all_assets()
    assert [item.asset.name for item in known] == ["good"] and not broken


@pytest.mark.parametrize(
    "fields",
    [
        {"file_name": name}
        for name in ("../x.ckpt", "a/b.ckpt", "/x.ckpt", "..", ".hidden", "", "x\n.ckpt", "a\\b", "x.json", "x.part")
    ]
    + [{"name": name} for name in ("", "A", "a/b", "..", "a:b")]
    + [{"sha256": "abc"}, {"sha256": "A" * 64}, {"size": 0}, {"convert": "module"}, {"convert": "os.system"}],
)
def test_records_that_cannot_be(fields: dict[str, Any]) -> None:
    WeightsAsset(**GOOD)
    with pytest.raises(ValueError, match=next(iter(fields))):
        WeightsAsset(**GOOD | fields)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/b", "..", "", ".x"])
def test_a_location_leads_nowhere_else(file: str, site: Path) -> None:
    install_asset(site)
    with pytest.raises(WeightsError, match="names no file of fetched weights"):
        read_state_dict(f"weights:tiny/{file}")


def test_a_location_of_what_is_not_there(site: Path) -> None:
    install_asset(site, noncommercial=True, licence="CC-BY-NC-SA-4.0", url="https://example.org/tiny.ckpt")
    with pytest.raises(WeightsError) as caught:
        read_state_dict("weights:tiny")
    assert str(caught.value) == (
        "the weights tiny (a tiny network; licence: CC-BY-NC-SA-4.0 (non-commercial use only)) are not here; fetch "
        "them with: fourd weights pull tiny"
    )
    with pytest.raises(WeightsError, match=r"there is no file other\.ckpt among the fetched weights tiny"):
        read_state_dict("weights:tiny/other.ckpt")
    with pytest.raises(WeightsError, match='no plugin knows weights called "tinier"'):
        read_state_dict("weights:tinier")


def test_recipes_leave_the_location_as_it_is(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_location("weights:tiny", None) == "weights:tiny"
    assert read_location("weights:acme-one:tiny/tiny.ckpt", None) == "weights:acme-one:tiny/tiny.ckpt"
    assert read_location("weights/tiny.ckpt", None) == f"{tmp_path}/weights/tiny.ckpt"


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOURD_WEIGHTS", raising=False)
    monkeypatch.delenv("FOURD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform != "darwin":
        assert weights_folder() == tmp_path / "fourd" / "weights"
    monkeypatch.setenv("FOURD_WEIGHTS", str(tmp_path / "mine"))
    assert weights_folder() == tmp_path / "mine"


def test_a_list_needs_no_torch(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_asset(site, convert="torch_is_not_imported_for_this:function")
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = (
        "import sys; from fourd_core.cli import main; assert main(['weights', 'list']) == 0; "
        "assert main(['weights', 'show', 'tiny']) == 0; print('torch' in sys.modules, 'zarr' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=shell_environment(), capture_output=True, text=True)
    assert result.stdout.endswith("False False\n"), result.stdout + result.stderr
    assert "tiny" in result.stdout
