"""`extends`, `remove`, `--set` and environment variables: what wins, and who is named when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_parts import Linear, Parts, Window

from fourd_core.errors import RecipeError
from fourd_core.recipe import Recipe, dumps, load_recipe

BASE = """\
seed = 1
[backbone]
use = "grid"
patch = 8
[heads.depth]
use = "decoder"
taps = [2, 5]
label = "base"
[heads.flow]
use = "linear"
[data]
video = "base.mp4"
[stages.look]
job = "predict"
window.frames = 9
"""
Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write files (`base/base.toml` is there) and load the last of them, standing in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def load(*overrides: str, **files: str) -> Recipe:
        path = tmp_path / "base" / "base.toml"
        for name, text in {"base": BASE, **files}.items():
            path = tmp_path / name / f"{name}.toml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return load_recipe(path, overrides, resolver=Parts())

    return load


def complaints(load: Load, *overrides: str, **files: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(*overrides, **files)
    # The folder of the test is no part of the message.
    return str(caught.value).replace(str(Path.cwd().parent), "").splitlines()


def extending(text: str) -> str:
    return f'extends = "../base/base.toml"\n{text}'


def test_tables_merge_and_the_later_wins(load: Load, tmp_path: Path) -> None:
    recipe = load(top=extending("[heads.depth]\ntaps = [7]\nfeatures = 3\n[backbone]\nsize = [1, 2]\n"))
    depth = recipe.heads["depth"].config
    assert (depth.taps, depth.features, depth.label) == ((7,), 3, "base")
    assert (recipe.backbone.config.patch, recipe.backbone.config.size) == (8, (1, 2))
    assert recipe.name == "top"
    assert recipe.data.config.video == f"{tmp_path}/base/base.mp4"


def test_a_location_is_relative_to_the_file_that_set_it(load: Load, tmp_path: Path) -> None:
    recipe = load(top=extending('weights = "w"\n[data]\nmore = ["x/*.png"]\n'))
    config = recipe.data.config
    assert (recipe.weights, config.video, config.more) == (
        f"{tmp_path}/top/w",
        f"{tmp_path}/base/base.mp4",
        (f"{tmp_path}/top/x/*.png",),
    )


def test_a_list_of_parents_and_parents_of_parents(load: Load) -> None:
    recipe = load(
        a=extending('seed = 2\ndescription = "a"\n'),
        b='extends = "../base/base.toml"\n[backbone]\npatch = 9\n',
        top='extends = ["../a/a.toml", "../b/b.toml"]\nthreads = 3\n',
    )
    # b's own parent sets the seed again, after a.
    assert (recipe.seed, recipe.description, recipe.backbone.config.patch, recipe.threads) == (1, "a", 9, 3)


def test_another_use_or_job_replaces_the_whole_table(load: Load) -> None:
    recipe = load(
        top=extending(
            '[heads.depth]\nuse = "linear"\n[data]\nuse = "linear"\n'
            '[stages.look]\njob = "train"\nobjective.use = "regression"\n'
        )
    )
    assert recipe.heads["depth"].config == Linear.Config()
    assert (recipe.data.use, recipe.stages["look"].job) == ("linear", "train")


def test_the_same_use_said_again_merges(load: Load) -> None:
    recipe = load(top=extending('[data]\nuse = "video"\nfps = 5\n[stages.look]\njob = "predict"\n'))
    assert recipe.data.config.fps == 5.0
    assert recipe.data.config.video.endswith("/base.mp4")
    assert recipe.stages["look"].config.window == Window(9, 8)


def test_remove(load: Load) -> None:
    recipe = load(top=extending('remove = ["heads.flow", "heads.depth.label", "stages"]\n'))
    assert list(recipe.heads) == ["depth"]
    assert recipe.heads["depth"].config.label is None
    assert recipe.stages == {}
    assert list(load(top=extending('remove = "heads"\n[heads.x]\nuse = "linear"\n')).heads) == ["x"]


def test_removing_what_is_not_there(load: Load) -> None:
    text = extending('remove = [\n  "heads.flaw",\n  "seed.x",\n  "no key"\n]\nsede = 1\n')
    assert complaints(load, top=text) == [
        '/top/top.toml:3: remove: "heads.flaw" is not among what this recipe extends; did you mean "heads.flow"?',
        '/top/top.toml:4: remove: "seed.x" is not among what this recipe extends; did you mean "seed"?',
        '/top/top.toml:5: remove: "no key" is not among what this recipe extends',
        '/top/top.toml:7: sede: unknown key; did you mean "seed"?',
    ]


def test_mistakes_name_the_file_that_made_them(load: Load) -> None:
    broken = BASE.replace("patch = 8", 'patch = "8"')
    text = extending("[heads.depth]\nfeatures = true\n[heads.flow]\nrnak = 1\n")
    assert complaints(load, base=broken, top=text) == [
        '/base/base.toml:4: backbone.patch: found the text "8", expected an integer'.replace(
            "/base", "/top/../base", 1
        ),
        "/top/top.toml:3: heads.depth.features: found true, expected an integer",
        '/top/top.toml:5: heads.flow.rnak: "linear" has no such key; did you mean "rank"?',
    ]


def test_what_was_replaced_or_removed_is_not_named(load: Load) -> None:
    missing = "heads.depth.taps: missing, expected a list, each item an integer"
    assert complaints(load, top=extending('[heads.depth]\nuse = "other_decoder"\n')) == [f"/top/top.toml:2: {missing}"]
    assert complaints(load, top=extending('remove = "heads.depth.taps"')) == [f"/top/../base/base.toml:5: {missing}"]
    assert complaints(load, 'heads.depth={use="decoder", taps=["x"]}') == [
        '--set heads.depth={use="decoder", taps=["x"]}: heads.depth.taps[0]: found the text "x", expected an integer'
    ]


def test_extends_that_cannot_be_followed(load: Load) -> None:
    assert complaints(load, top='\nextends = "no.toml"\n') == [
        "/top/top.toml:2: extends: there is no file /top/no.toml"
    ]
    assert complaints(load, top="extends = 3\n") == [
        "/top/top.toml:1: extends: found the number 3, expected a text or a list of texts"
    ]
    (line,) = complaints(load, top='extends = "../other/other.toml"\n', other='extends = "../top/top.toml"\n')
    assert line.endswith("a recipe cannot extend itself (other.toml extends top.toml extends other.toml)")


def test_set_is_typed_by_the_schema(load: Load, tmp_path: Path) -> None:
    recipe = load(
        "heads.depth.taps=[2,5,8,11]",
        "data.video=my.mp4",
        "data.more=['a.mp4', \"b.mp4\"]",
        "name=12",
        "description = true",
        "seed=0x10",
        "heads.depth.dropout=1",
        "heads.depth.bias=false",
        "heads.depth.mode=nearest",
        'heads.depth.label="none of it"',
        "heads.depth.scales.'a.b'=2",
        "data.fps=none",
        "stages.look.window={frames=4, overlap=1}",
        "heads.new.use=linear",
        "precision='bf16'",
    )
    depth = recipe.heads["depth"].config
    assert (depth.taps, depth.dropout, depth.bias, depth.mode) == ((2, 5, 8, 11), 1.0, False, "nearest")
    assert (depth.label, depth.scales) == ("none of it", {"a.b": 2.0})
    data = recipe.data.config
    assert (data.video, data.fps) == (f"{tmp_path}/here/my.mp4", None)
    assert data.more == (f"{tmp_path}/here/a.mp4", f"{tmp_path}/here/b.mp4")
    assert (recipe.name, recipe.description, recipe.seed, recipe.precision) == ("12", "true", 16, "bf16")
    assert recipe.stages["look"].config.window == Window(4, 1)
    assert recipe.heads["new"].config == Linear.Config()


def test_the_later_set_wins_and_goes_into_tables_of_earlier_ones(load: Load) -> None:
    recipe = load("seed=3", "seed=4", 'heads.flow={use="decoder", taps=[1]}', "heads.flow.taps=[9]")
    assert (recipe.seed, recipe.heads["flow"].config.taps) == (4, (9,))
    for none in ("none", '"none"'):
        assert load(f"heads.depth.label={none}").heads["depth"].config.label is None


def test_wrong_sets_are_named(load: Load) -> None:
    assert complaints(
        load,
        "seed=abc",
        "heads.depth.tasp=[1]",
        "head.depth.taps=[1]",
        "heads.deptj.taps=[1]",
        "heads.depth.features=3\nx=1",
        "backbone.patch=none",
        "data.fps.x=1",
    ) == [
        '--set backbone.patch=none: backbone.patch: found the text "none", expected an integer',
        "--set data.fps.x=1: data.fps: found a table, expected a number",
        '--set head.depth.taps=[1]: head: unknown key; did you mean "heads"?',
        '--set heads.depth.features=3\\nx=1: heads.depth.features: found the text "3\\nx=1", expected an integer',
        '--set heads.depth.tasp=[1]: heads.depth.tasp: "decoder" has no such key; did you mean "taps"?',
        "--set heads.deptj.taps=[1]: heads.deptj.use: missing, expected the name of one of the heads; "
        'did you mean "depth"?',
        '--set seed=abc: seed: found the text "abc", expected an integer',
    ]
    for bad in ("seed", "=3", "a b=3", ""):
        assert complaints(load, bad) == [f"--set {bad}: expected dotted.key=value, for example --set data.video=my.mp4"]


def test_switching_a_component_by_set_says_what_to_do_with_the_old_keys(load: Load) -> None:
    advice = '; a whole table, { use = "linear" }, replaces the old keys'
    assert complaints(load, "heads.depth.use=linear") == [
        f'/base/base.toml:7: heads.depth.taps: "linear" has no such key; known here: rank{advice}',
        f'/base/base.toml:8: heads.depth.label: "linear" has no such key; known here: rank{advice}',
    ]
    assert load('heads.depth={use="linear"}').heads["depth"].config == Linear.Config()


def test_environment_variables_where_they_are_named(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_HEAD", "linear")
    monkeypatch.setenv("RECIPE_EMPTY", "")
    monkeypatch.setenv("RECIPE_TRICK", "${env:RECIPE_HEAD}")
    monkeypatch.delenv("RECIPE_MISSING", raising=False)
    text = """
description = "$HOME $${env:X} ${RECIPE_HEAD} ${env:RECIPE_TRICK} [${env:RECIPE_EMPTY}]"
weights = "${env:RECIPE_MISSING:-w}.st"
[heads.flow]
use = "${env:RECIPE_HEAD}"
[data]
more = ["${env:RECIPE_EMPTY:-a b}/${env:RECIPE_HEAD}"]
"""
    recipe = load(top=extending(text))
    assert recipe.description == "$HOME ${env:X} ${RECIPE_HEAD} ${env:RECIPE_HEAD} []"
    assert recipe.weights == f"{tmp_path}/top/w.st"
    assert recipe.heads["flow"].use == "linear"
    assert recipe.data.config.more == (f"{tmp_path}/top/a b/linear",)
    monkeypatch.setenv("RECIPE_HEAD", "changed")
    again = load(again=dumps(recipe))
    assert again == recipe
    assert load("seed=${env:RECIPE_MISSING:-5}").seed == 5


def test_missing_variables_are_mistakes_only_where_their_value_counts(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECIPE_MISSING", raising=False)
    base = BASE.replace('"base.mp4"', '"${env:RECIPE_MISSING}"').replace('use = "linear"', 'use = "${env:}"')
    assert complaints(load, base=base) == [
        '/base/base.toml:10: heads.flow.use: found a damaged "${env:", '
        'expected "${env:NAME}" or "${env:NAME:-default}"',
        "/base/base.toml:12: data.video: the environment variable RECIPE_MISSING is not set; "
        'set it, or write "${env:RECIPE_MISSING:-default}"',
    ]
    assert load("data.video=a.mp4", "heads.flow.use=linear", base=base).data.config.video.endswith("here/a.mp4")
