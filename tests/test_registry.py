"""Discovery: real distributions on disk, found without importing them; each way to be broken is a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from fourd_core import interfaces, registry
from fourd_core.errors import PluginError

HEAD = '''
"""A module."""
import attrs
from fourd_core.interfaces import Head


class Ones(Head):
    """Ones everywhere.

    More about them.
    """

    @attrs.frozen
    class Config:
        """No keys."""

    def forward(self, tokens, clip):
        return None
'''

Install = Callable[..., Path]


def install_into(
    folder: Path,
    name: str,
    module: str,
    source: str | None = HEAD,
    *,
    points: str = "",
    version: str = "1.2",
    api: str | None = "api.1",
    needs: str = "",
    ending: str = "dist-info",
) -> Path:
    """Lay a distribution into `folder` the way an installer does; by default with the head `ones`."""
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        (folder / f"{module}.py").write_text(dedent(source))
    info = folder / f"{name.replace('-', '_')}-{version}.{ending}"
    info.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: the summary of {name}"]
    lines += [f"Requires-Dist: {needs}"] if needs else []
    (info / ("METADATA" if ending == "dist-info" else "PKG-INFO")).write_text("\n".join(lines) + "\n")
    groups = points or f"[fourd.heads]\nones = {module}:Ones"
    groups += f"\n[fourd.plugin]\n{api} = {module}\n" if api else ""
    (info / "entry_points.txt").write_text(groups)
    return folder


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs into a folder on the path; names and modules of each test are its own."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delenv("FOURD_PLUGINS", raising=False)

    def install(name: str, module: str, source: str | None = HEAD, **options: str | None) -> Path:
        registry._distributions.cache_clear()
        return install_into(tmp_path / "site", name, module, source, **options)  # type: ignore[arg-type]

    return install


def ours(*distributions: str, kind: str | None = None) -> list[registry.Record]:
    return [record for record in registry.records(kind) if record.distribution in distributions]


def message(action: Callable[[], object]) -> str:
    with pytest.raises(PluginError) as caught:
        action()
    return str(caught.value)


def test_interfaces_exist_for_every_kind() -> None:
    for name in registry.INTERFACES.values():
        assert issubclass(getattr(interfaces, name), interfaces.Component)


def test_record_is_read_without_import(install: Install) -> None:
    install("Acme_Ones", "acme_ones_a", 'raise SystemExit("imported!")' + HEAD)
    (record,) = ours("acme-ones")
    assert (record.kind, record.name, record.version) == ("heads", "ones", "1.2")
    assert record.summary == "Ones everywhere."
    assert record.problem is None
    assert "acme_ones_a" not in sys.modules


def test_summary_falls_back_to_the_distribution(install: Install) -> None:
    install("acme-alias", "acme_alias", "from acme_elsewhere import Ones")
    (record,) = ours("acme-alias")
    assert record.summary == "the summary of acme-alias" and record.problem is None


def test_submodule_of_a_package_is_found_without_importing_the_package(install: Install) -> None:
    site = install("acme-deep", "", None, points="[fourd.heads]\ndeep = acme_deep.inner.heads:Ones")
    inner = site / "acme_deep" / "inner"
    inner.mkdir(parents=True)
    (site / "acme_deep" / "__init__.py").write_text("raise RuntimeError")
    (inner / "__init__.py").write_text("raise RuntimeError")
    (inner / "heads.py").write_text(HEAD)
    (record,) = ours("acme-deep")
    assert record.summary == "Ones everywhere." and record.problem is None


def test_load_returns_the_class(install: Install) -> None:
    install("acme-load", "acme_load", points="[fourd.heads]\nacme_load = acme_load:Ones")
    cls = registry.load("heads", "acme_load")
    assert issubclass(cls, interfaces.Head) and cls.__name__ == "Ones"


def test_duplicate_name_is_an_error_that_lists_both(install: Install) -> None:
    install("fourd-plugin-one", "acme_one", points="[fourd.heads]\nsame = acme_one:Ones")
    install("acme-two", "acme_two", points="[fourd.heads]\nsame = acme_two:Ones")
    text = message(lambda: registry.find("heads", "same"))
    assert '"one:same"' in text and '"acme-two:same"' in text
    assert registry.find("heads", "one:same").distribution == "fourd-plugin-one"
    assert registry.find("heads", "fourd-plugin-one:same").distribution == "fourd-plugin-one"
    assert registry.load("heads", "acme-two:same").__module__ == "acme_two"
    assert len(ours("fourd-plugin-one", "acme-two")) == 2


def test_one_distribution_found_twice_counts_once_and_the_installed_one_wins(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-twice", "acme_twice", version="2.0", points="[fourd.heads]\ntwice = acme_twice:Ones")
    leftover = install_into(
        tmp_path / "source", "acme.twice", "acme_twice", version="1.0", ending="egg-info",
        points="[fourd.heads]\ntwice = acme_twice:Gone",
    )  # fmt: skip
    monkeypatch.syspath_prepend(leftover)
    assert [record.version for record in ours("acme-twice")] == ["2.0"]
    assert registry.find("heads", "twice").problem is None


def test_of_two_leftovers_the_first_on_the_path_wins(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-left", "acme_left", version="1.0", ending="egg-info")
    first = install_into(tmp_path / "first", "acme-left", "acme_left", version="2.0", ending="egg-info")
    monkeypatch.syspath_prepend(first)
    assert [record.version for record in ours("acme-left")] == ["2.0"]


def test_unknown_name_suggests_what_is_near(install: Install) -> None:
    install("acme-near", "acme_near", points="[fourd.heads]\nacme_depth = acme_near:Ones")
    assert "did you mean acme_depth?" in message(lambda: registry.find("heads", "acme_deth"))
    assert "acme-near:acme_depth in heads" in message(lambda: registry.find("cues", "acme_depth"))
    assert "there is acme-near:acme_depth" in message(lambda: registry.find("heads", "other:acme_depth"))


def test_unknown_name_of_ours_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_find_all", lambda: iter(()))
    text = message(lambda: registry.find("heads", "pixel_decoder"))
    assert text == 'unknown name "pixel_decoder" in heads; it comes with a plugin: pip install fourd-plugin-dpt3d'
    assert "none are installed" in message(lambda: registry.find("heads", "no such thing"))


@pytest.mark.parametrize(
    ("api", "advice"),
    [("api.2", "update fourd-core"), ("api.0", "update the plugin"), (None, "must add an entry point")],
)
def test_api_version_mismatch(install: Install, api: str | None, advice: str) -> None:
    install("acme-api", "acme_api", "raise RuntimeError", api=api, points="[fourd.heads]\nacme_api = acme_api:Ones")
    (record,) = ours("acme-api")
    assert (record.problem and record.problem.endswith(advice)) or advice in str(record.problem)
    assert advice in message(lambda: registry.load("heads", "acme_api"))
    assert "acme_api" not in sys.modules


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "module acme_static is missing"),
        ("class Ones(:\n", "syntax error in line 1"),
        ("class Twos: pass", "does not define Ones"),
    ],
)
def test_static_problems(install: Install, source: str | None, expected: str) -> None:
    install("acme-static", "acme_static", source)
    (record,) = ours("acme-static")
    assert record.problem and expected in record.problem


@pytest.mark.parametrize("source", ["if True:\n    class Ones: pass", "try:\n    Ones = 1\nexcept Exception: pass",
                                    "from os import *", "def __getattr__(name): pass"])  # fmt: skip
def test_no_problem_where_only_an_import_can_tell(install: Install, source: str) -> None:
    install("acme-dynamic", "acme_dynamic", source)
    assert ours("acme-dynamic")[0].problem is None


def test_missing_requirement(install: Install) -> None:
    install("acme-needs", "acme_needs", needs="no-such-library>=3")
    (record,) = ours("acme-needs")
    assert (
        record.problem and "no-such-library" in record.problem and "pip install 'no-such-library>=3'" in record.problem
    )


def test_requirement_of_an_extra_is_not_missed(install: Install) -> None:
    install("acme-extra", "acme_extra", needs='no-such-library; extra == "all"')
    assert ours("acme-extra")[0].problem is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('raise RuntimeError("bad day")', "RuntimeError: bad day"),
        ('raise SystemExit("bye")', "SystemExit: bye"),
        ("import no_such_module.deep", "install what brings the module no_such_module"),
    ],
)
def test_load_of_a_broken_plugin(install: Install, line: str, reason: str) -> None:
    name = f"acme_raise_{abs(hash(line)) % 10**8}"
    install("acme-raise", name, f"{line}\n{HEAD}", points=f"[fourd.heads]\nacme_raise = {name}:Ones")
    text = message(lambda: registry.load("heads", "acme_raise"))
    assert text.startswith('"acme_raise" in heads (acme-raise 1.2) cannot be imported: ')
    assert reason in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("(Head)", "(object)"), "does not derive from fourd_core.interfaces.Head"),
        (("def forward", "def backward"), "lacks forward"),
        (("class Config", "class Keys"), "has no nested attrs class Config"),
    ],
)
def test_load_of_what_is_no_head(install: Install, change: tuple[str, str], reason: str) -> None:
    name = f"acme_wrong_{abs(hash(change)) % 10**8}"
    install("acme-wrong", name, HEAD.replace(*change), points=f"[fourd.heads]\nacme_wrong = {name}:Ones")
    assert reason in message(lambda: registry.load("heads", "acme_wrong"))


def test_fourd_plugins_selects_before_loading(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("fourd-plugin-red", "acme_red", points="[fourd.heads]\nred = acme_red:Ones")
    install("acme-blue", "acme_blue", points="[fourd.heads]\nblue = acme_blue:Ones")

    def names(value: str) -> list[str]:
        monkeypatch.setenv("FOURD_PLUGINS", value)
        return [r.name for r in registry.records() if r.distribution != registry.CORE]

    assert names("") == []
    assert names("red") == names("fourd_plugin.Red") == ["red"]
    assert names("red, acme-blue") == ["blue", "red"]
    assert names("blue") == []  # a suffix names only our own plugins
    text = message(lambda: registry.load("heads", "red"))
    assert 'FOURD_PLUGINS="blue"' in text and "fourd-plugin-red" in text


def test_core_components_need_no_api_version_and_are_never_switched_off(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fourd-core", "acme_core", api=None, version="0.1.0")
    monkeypatch.setenv("FOURD_PLUGINS", "")
    (record,) = registry.records("heads")
    assert (record.distribution, record.problem) == ("fourd-core", None)


# ---- `fourd list`: the probe and its memory

PROBE = """
import json, sys
from fourd_core import probe, registry
probe.TIMEOUT = {timeout}
records = probe.probed([r for r in registry.records() if r.distribution.startswith("acme-")], fresh={fresh})
loud = [m for m in sys.modules if m.partition(".")[0] in ("torch", "numpy", "rich") or m.startswith("acme")]
print(json.dumps([{{r.distribution: r.problem for r in records}}, loud]))
"""

LISTENER = "class Ones: pass\n"  # a hook: trying it costs no import of torch

Probe = Callable[..., tuple[dict[str, str | None], str]]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """What a fresh process says of the distributions in `site`, and what it wrote on stderr."""

    def run(fresh: bool = False, timeout: float = 60.0, **environment: str) -> tuple[dict[str, str | None], str]:
        own = {
            "FOURD_PLUGINS": "acme-fine,acme-broken,acme-exit,acme-crash",
            "FOURD_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(tmp_path / "site"),
        }
        command = [sys.executable, "-c", PROBE.format(fresh=fresh, timeout=timeout)]
        settings = {**os.environ, **own, **environment}
        result = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        problems, imported = json.loads(result.stdout)
        assert imported == []
        return problems, result.stderr

    return run


def test_probe_finds_what_raises_and_remembers_it(tmp_path: Path, probe: Probe) -> None:
    site = tmp_path / "site"
    points = "[fourd.hooks]\n{0} = acme_{0}:Ones"
    install_into(site, "acme-fine", "acme_fine", "print('noise')\n" + LISTENER, points=points.format("fine"))
    install_into(site, "acme-broken", "acme_broken", "1 / 0\n" + LISTENER, points=points.format("broken"))
    install_into(site, "acme-exit", "acme_exit", "import os; os._exit(7)\n" + LISTENER, points=points.format("exit"))
    install_into(
        site, "acme-crash", "acme_crash", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n" + LISTENER,
        points=points.format("crash"),
    )  # fmt: skip
    problems, said = probe()
    assert "new or changed" in said
    assert problems["acme-fine"] is None
    assert problems["acme-broken"] and "ZeroDivisionError: division by zero" in problems["acme-broken"]
    assert problems["acme-exit"] and "ends Python (exit code 7)" in problems["acme-exit"]
    assert problems["acme-crash"] and "crashes Python (SIGSEGV)" in problems["acme-crash"]

    again, said = probe()
    assert again == problems and said == ""

    (site / "acme_fine.py").write_text("raise KeyError('changed')\n" + LISTENER)
    changed, said = probe()
    assert said.strip() == "looking at plugins that are new or changed: acme-fine"
    assert "KeyError: 'changed'" in str(changed["acme-fine"])

    # Mended by installing something: the folder of distributions changes, the plugin does not.
    (site / "acme_broken.py").write_text("import acme_helper\n" + LISTENER)
    assert "acme_helper" in str(probe()[0]["acme-broken"])
    (site / "acme_helper.py").write_text("")
    assert probe()[0]["acme-broken"] is None


def test_a_plugin_that_never_finishes_importing_is_given_up(tmp_path: Path, probe: Probe) -> None:
    points = "[fourd.hooks]\nslow = acme_slow:Ones"
    install_into(
        tmp_path / "site", "acme-fine", "acme_slow", "import time; time.sleep(600)\n" + LISTENER, points=points
    )
    assert "takes longer than 5 seconds" in str(probe(timeout=5.0)[0]["acme-fine"])


def test_doctor_asks_again_and_a_damaged_or_unwritable_cache_harms_nobody(tmp_path: Path, probe: Probe) -> None:
    install_into(tmp_path / "site", "acme-fine", "acme_fine", LISTENER, points="[fourd.hooks]\nfine = acme_fine:Ones")
    assert probe()[0] == {"acme-fine": None}
    (file,) = (tmp_path / "cache").iterdir()
    entries = json.loads(file.read_text())
    assert entries["hooks/acme-fine:fine"]["problem"] is None
    entries["hooks/acme-fine:fine"]["problem"] = "remembered"
    file.write_text(json.dumps(entries))
    assert probe()[0] == {"acme-fine": "remembered"}
    assert probe(fresh=True)[0] == probe()[0] == {"acme-fine": None}

    for damage in ("{", "[]", '{"hooks/acme-fine:fine": 3}'):
        file.write_text(damage)
        assert probe()[0] == {"acme-fine": None}

    (tmp_path / "a file").write_text("")
    problems, said = probe(FOURD_CACHE=str(tmp_path / "a file"))
    assert problems == {"acme-fine": None} and "cannot be written" in said


def test_fourd_list_imports_nothing_heavy(tmp_path: Path) -> None:
    """What makes it instant; benchmarks/startup.py measures how much."""
    environment = {**os.environ, "FOURD_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "fourd_core", "list"]
    subprocess.run(command, env=environment, check=True, capture_output=True)  # fills the cache
    code = (
        "import sys; from fourd_core.cli import main; main(['list'])\n"
        "from fourd_core import registry\n"
        "plugins = {r.entry_point.value.partition('.')[0] for r in registry.records()} - {'fourd_core'}\n"
        "heavy = {'torch', 'numpy', 'av', 'zarr', 'rich'} | plugins\n"
        "sys.exit(', '.join(sorted(heavy & {m.partition('.')[0] for m in sys.modules})) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
