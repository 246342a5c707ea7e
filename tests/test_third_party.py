"""A stranger's way: wheels into a fresh environment, `fourd list`, the contract tests, a run of the foreign recipe.

The environment borrows the large libraries of this one (links, so nothing is downloaded) but none of fourd's own
distributions: those come from the wheels alone, and pip resolves what they require.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import SMALL_LILA

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "third_party"
PLUGINS = tuple(sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml")))
PROJECTS = (ROOT, *PLUGINS, EXAMPLE)

Shell = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command in an environment that knows nothing of this repository."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FOURD", "VIRTUAL_ENV"))}
    settings = {**kept, "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", "FOURD_CACHE": str(cwd / "cache")}
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env=settings, capture_output=True, text=True, timeout=300)
    if check:
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One wheel for each project, built from a copy so that no build leaves anything in the sources."""
    folder = tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests")
    for number, project in enumerate(PROJECTS):
        copy = folder / "sources" / str(number)
        copy.mkdir(parents=True)
        for item in project.iterdir():
            if item.is_file():
                shutil.copy(item, copy)
            elif (item / "__init__.py").exists():
                shutil.copytree(item, copy / item.name, ignore=ignored)
        arguments = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", copy)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", *arguments, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def shell(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A stranger's shell."""
    return fresh_environment(tmp_path_factory.mktemp("stranger"), wheels, "acme-fourd[recipe]")


def fresh_environment(folder: Path, wheels: Path, *requirements: str) -> Shell:
    """Runs programs of a new environment in which these distributions, and what they require, are installed."""
    venv.create(folder / "env", with_pip=False, symlinks=True)
    scripts = folder / "env" / "bin"
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for key in ("purelib", "platlib"):
        for item in Path(sysconfig.get_path(key)).iterdir():
            # A .pth file would bring the editable installs of this repository along.
            if item.suffix != ".pth" and not item.name.startswith(("fourd", "__editable__")):
                link = borrowed / item.name
                link.exists() or link.symlink_to(item)
    site = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site.stdout.strip(), "borrowed.pth").write_text(f"{borrowed}\n")

    def call(program: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(scripts / program, *arguments, cwd=folder, check=check)

    call("python", "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels, *requirements)
    return call


def test_every_distribution_carries_its_licence(wheels: Path) -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    for project in (EXAMPLE, *PLUGINS):
        assert (project / "LICENSE").read_bytes() == licence, f"{project.name} has another LICENSE than the root"
    built = list(wheels.glob("*.whl"))
    assert len(built) == len(PROJECTS)
    for wheel in built:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
            assert archive.read(name) == licence


def test_the_wheels_are_what_is_used(shell: Shell) -> None:
    names = ("fourd_core", "fourd_effnet", "fourd_dpt3d", "acme_fourd")
    code = f"import sys, importlib; print(*(importlib.import_module(n).__file__ for n in {names}), sep='\\n')"
    paths = shell("python", "-c", code).stdout.splitlines()
    assert len(paths) == len(names)
    for path in paths:
        assert "/stranger" in path and str(ROOT) not in path
    assert shell("python", "-c", f"import sys; print({str(ROOT)!r} in sys.path)").stdout == "False\n"


def test_list_shows_the_foreign_components(shell: Shell) -> None:
    result = shell("fourd", "list")
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ")}
    assert {"acme_edges", "acme_regression", "acme_diary", "effnet", "pixel_decoder"} <= rows.keys()
    assert "acme-fourd 1.0" in rows["acme_edges"] and "Edges of a frame" in rows["acme_edges"]
    assert "BROKEN" not in result.stdout


def test_the_foreign_components_keep_their_contracts(shell: Shell) -> None:
    code = (
        "from fourd_core.testing import check_component; import acme_fourd\n"
        "check_component('cues', acme_fourd.Edges); check_component('objectives', acme_fourd.Regression)"
    )
    shell("python", "-c", code)


def test_the_foreign_recipe_runs(shell: Shell, clip: Path, tmp_path: Path) -> None:
    recipe = shutil.copy(EXAMPLE / "recipe.toml", tmp_path)
    folder = tmp_path / "run"
    result = shell("fourd", "run", recipe, "--set", f"data.video={clip}", "--out", folder)
    assert "report.html" in result.stdout and (folder / "report.html").exists()
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses
    diary = (folder / "diary.txt").read_text().splitlines()
    assert diary[0] == f"train 1: {losses[0]:.6f}" and diary[-1] == "done" and len(diary) == 31
    assert json.loads((folder / "run.json").read_text())["versions"]["acme-fourd"] == "1.0"


def test_switching_the_foreign_package_off_is_explained(shell: Shell, clip: Path, tmp_path: Path) -> None:
    recipe = shutil.copy(EXAMPLE / "recipe.toml", tmp_path)
    code = "import os; os.environ['FOURD_PLUGINS'] = 'effnet,dpt3d'; import fourd_core.__main__"
    arguments = ("run", recipe, "--set", f"data.video={clip}", "--out", tmp_path / "run")
    result = shell("python", "-c", code, *arguments, check=False)
    assert result.returncode == 2
    assert "acme-fourd" in result.stderr and "FOURD_PLUGINS" in result.stderr
    assert not (tmp_path / "run").exists()


def test_core_and_lila_alone_run_the_tiny_recipe(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lila")
    shell = fresh_environment(folder, wheels, "fourd-core", "fourd-plugin-lila")
    assert str(ROOT) not in shell("python", "-c", "import fourd_lila; print(fourd_lila.__file__)").stdout
    words = [word for override in SMALL_LILA for word in ("--set", override)]
    result = shell("fourd", "run", ROOT / "recipes/lila_tiny.toml", "train", "evaluate", *words, "--out", "run")
    assert "trained in context" in result.stdout
    assert (folder / "run/train/weights.safetensors").exists()
