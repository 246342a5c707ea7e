"""What fits the schema and what does not, and the way back to TOML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_parts import Decoder, Grid, Linear, Parts, Predict, Regression, Train, Video, Window

from fourd_core.errors import RecipeError
from fourd_core.recipe import ComponentConfig, Recipe, StageConfig, dumps, load_recipe, parse

WHOLE = """
description = "everything"
seed = 7
device = "cuda:1"
threads = 2
precision = "bf16"
weights = "trained.safetensors"

[backbone]
use = "grid"
patch = 8
size = [64, 96]

[heads.depth]
use = "decoder"
taps = [2, 5]
dropout = 1
label = "metres"
window = { frames = 4, overlap = 2 }
scales = { near = 1, far = 2.5 }

[memories.depth]
use = "linear"

[cues]
flow.use = "linear"
flow.rank = 2

[data]
video = "../clips/a.mp4"
more = ["s3://bucket/b.mp4", "zip://c.mp4::c.zip", "package:toys/d.mp4", "/e/*.png"]

[stages.second]
job = "train"
steps = 3

[stages.second.objective]
use = "regression"

[stages.second.metrics.error]
use = "linear"

[stages.first]
job = "predict"
"""
SMALL = '[backbone]\nuse = "grid"\n[data]\nvideo = "a.mp4"\n'


def from_text(text: str, *overrides: str, base: str = "/base/recipes") -> Recipe:
    return parse(text, overrides, name="r.toml", base=base, resolver=Parts())


def complaints(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        from_text(text, *overrides)
    return str(caught.value).splitlines()


def head(keys: str, *overrides: str) -> Any:
    """The Config of one decoder with these keys."""
    return from_text(f'{SMALL}[heads.x]\nuse = "decoder"\n{keys}\n', *overrides).heads["x"].config


def test_everything_is_structured() -> None:
    recipe = from_text(WHOLE)
    assert recipe == Recipe(
        name="r.toml",
        description="everything",
        seed=7,
        device="cuda:1",
        threads=2,
        precision="bf16",
        weights="/base/recipes/trained.safetensors",
        backbone=ComponentConfig("backbones", "grid", Grid.Config(8, (64, 96))),
        heads={
            "depth": ComponentConfig(
                "heads",
                "decoder",
                Decoder.Config(
                    (2, 5), dropout=1.0, label="metres", window=Window(4, 2), scales={"near": 1.0, "far": 2.5}
                ),
            )
        },
        memories={"depth": ComponentConfig("memories", "linear", Linear.Config())},
        cues={"flow": ComponentConfig("cues", "linear", Linear.Config(2))},
        data=ComponentConfig(
            "datasets",
            "video",
            Video.Config(
                "/base/clips/a.mp4",
                ("s3://bucket/b.mp4", "zip://c.mp4::/base/recipes/c.zip", "package:toys/d.mp4", "/e/*.png"),
            ),
        ),
        stages={
            "second": StageConfig(
                "train",
                Train(
                    ComponentConfig("objectives", "regression", Regression.Config()),
                    metrics={"error": ComponentConfig("metrics", "linear", Linear.Config())},
                    steps=3,
                ),
            ),
            "first": StageConfig("predict", Predict()),
        },
    )
    assert list(recipe.stages) == ["second", "first"]
    config = recipe.heads["depth"].config
    assert type(config.dropout) is float and type(config.label) is str and type(config.scales["near"]) is float


def test_defaults_are_written_out_and_load_back_anywhere(tmp_path: Path) -> None:
    recipe = from_text(WHOLE)
    text = dumps(recipe)
    for line in ('name = "r.toml"', 'video = "/base/clips/a.mp4"', "overlap = 8", "bias = true", 'other = "none"'):
        assert line in text.splitlines(), line
    (tmp_path / "recipe.toml").write_text(text)
    again = load_recipe(tmp_path / "recipe.toml", resolver=Parts())
    assert again == recipe
    assert list(again.stages) == ["second", "first"]
    assert dumps(again) == text


def test_the_files_name_is_the_default_name(tmp_path: Path) -> None:
    (tmp_path / "my_run.toml").write_text(SMALL)
    recipe = load_recipe(tmp_path / "my_run.toml", resolver=Parts())
    assert (recipe.name, recipe.data.config.video) == ("my_run", f"{tmp_path}/a.mp4")


@given(
    label=st.none() | st.text(st.characters(exclude_categories=("Cs",))).filter(lambda text: text != "none"),
    dropout=st.floats(allow_nan=False),
    features=st.integers(-(2**63), 2**63 - 1),
    names=st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.floats(allow_nan=False), max_size=3),
    fps=st.none() | st.floats(1, 100),
)
def test_any_values_survive_the_way_to_toml_and_back(**values: Any) -> None:
    label, dropout, features = values["label"], values["dropout"], values["features"]
    config = Decoder.Config((1,), features, dropout, False, "nearest", label, scales=values["names"])
    recipe = Recipe(
        backbone=ComponentConfig("backbones", "grid", Grid.Config()),
        heads={"x": ComponentConfig("heads", "decoder", config)},
        data=ComponentConfig("datasets", "video", Video.Config("/a/b.mp4", fps=values["fps"])),
    )
    assert parse(dumps(recipe), resolver=Parts()) == recipe


KEYS = ["backbone", "heads", "data", "stages", "seed", "use", "job", "x", "taps", "window", "objective", "label"]
WORDS = ["grid", "decoder", "video", "train", "predict", "regression", "none", "${env:", "~", "", "é\n"]
SCALARS = st.sampled_from(WORDS) | st.integers() | st.floats() | st.booleans() | st.dates()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.dictionaries(st.sampled_from(KEYS), TREES, max_size=6), st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)
)
def test_any_tables_give_a_recipe_or_complaints_of_a_line_each(tables: dict[str, Any], keys: list[str]) -> None:
    try:
        recipe = parse(tables, [f"{'.'.join(keys)}={tables}".replace("\n", "")], resolver=Parts())
    except RecipeError as error:
        assert all(line.startswith(("recipe: ", "--set ")) for line in str(error).split("\n")), error
    else:
        assert parse(dumps(recipe), resolver=Parts()) == recipe


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ('bias = "false"', 'r.toml:8: heads.x.bias: found the text "false", expected true or false'),
        ("bias = 1", "r.toml:8: heads.x.bias: found the number 1, expected true or false"),
        ("features = 7.9", "r.toml:8: heads.x.features: found the number 7.9, expected an integer"),
        ("features = true", "r.toml:8: heads.x.features: found true, expected an integer"),
        ('dropout = "0.1"', 'r.toml:8: heads.x.dropout: found the text "0.1", expected a number'),
        ("dropout = false", "r.toml:8: heads.x.dropout: found false, expected a number"),
        ("dropout = nan", "r.toml:8: heads.x.dropout: found the number nan, expected a finite number"),
        ("label = 3", "r.toml:8: heads.x.label: found the number 3, expected a text"),
        (
            "label = 1979-05-27",
            "r.toml:8: heads.x.label: found a date or time (1979-05-27), expected a text",
        ),
        (
            'mode = "bilinaer"',
            'r.toml:8: heads.x.mode: found the text "bilinaer", expected one of "bilinear", "nearest"; '
            'did you mean "bilinear"?',
        ),
        ("order = true", "r.toml:8: heads.x.order: found true, expected one of 1, 2"),
        ("window = 3", "r.toml:8: heads.x.window: found the number 3, expected a table"),
        ("window.frame = 3", 'r.toml:8: heads.x.window.frame: unknown key; did you mean "frames"?'),
        (
            "[heads.x.window]\nframes = 4\noverlap = 4",
            "r.toml:10: heads.x.window.overlap: 4 frames of overlap do not fit into a window of 4",
        ),
        (
            "window.overlap = 99",
            "r.toml:8: heads.x.window.overlap: 99 frames of overlap do not fit into a window of 16",
        ),
        (
            'window = { frames = "4", overlap = 99 }',
            'r.toml:8: heads.x.window.frames: found the text "4", expected an integer',
        ),
        ("scales.a = true", "r.toml:8: heads.x.scales.a: found true, expected a number"),
        ("scales = [1]", "r.toml:8: heads.x.scales: found a list, expected a table"),
    ],
)
def test_nothing_is_coerced(keys: str, complaint: str) -> None:
    assert complaints(f'{SMALL}[heads.x]\nuse = "decoder"\ntaps = [1]\n{keys}') == [complaint]


def test_tuples_are_lists_of_the_right_length_and_items() -> None:
    assert head("taps = [\n 1,\n 2,\n]").taps == (1, 2)
    assert complaints(f'{SMALL}[heads.x]\nuse = "decoder"\ntaps = [\n 1,\n 2.5,\n "3"\n]') == [
        "r.toml:9: heads.x.taps[1]: found the number 2.5, expected an integer",
        'r.toml:10: heads.x.taps[2]: found the text "3", expected an integer',
    ]
    assert complaints(f'{SMALL}[heads.x]\nuse = "decoder"\ntaps = "12"') == [
        'r.toml:7: heads.x.taps: found the text "12", expected a list, each item an integer'
    ]
    assert complaints(SMALL.replace('"grid"', '"grid"\nsize = [1, 2, 3]')) == [
        "r.toml:3: backbone.size: found a list of length 3, expected a list of 2: an integer, an integer"
    ]


def test_none_stands_for_no_value() -> None:
    assert from_text(SMALL).data.config.fps == 25.0
    recipe = from_text(SMALL + 'fps = "none"\n')
    assert recipe.data.config.fps is None
    assert 'fps = "none"' in dumps(recipe)


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = """\
sede = 3
seed = -1
device = "gpu"
[backbone]
use = "gird"
[heads.a]
taps = [1]
[heads.b]
use = "decoder"
[heads.c]
use = "linear"
rnak = 1
rank = "x"
[stages.s]
job = "trian"
[stages.t]
job = "train"
steps = 0
"""
    assert complaints(text) == [
        "r.toml:1: data.video: missing, expected a path, a glob pattern or a URL",
        'r.toml:1: sede: unknown key; did you mean "seed"?',
        "r.toml:2: seed: found -1, expected an integer from 0 to 2^63 - 1",
        'r.toml:3: device: found the text "gpu", expected "auto", "cpu", "cuda", "cuda:0" (or another number) or "mps"',
        'r.toml:5: backbone.use: unknown name "gird" in backbones; did you mean "grid"?',
        "r.toml:6: heads.a.use: missing, expected the name of one of the heads",
        "r.toml:8: heads.b.taps: missing, expected a list, each item an integer",
        'r.toml:12: heads.c.rnak: "linear" has no such key; did you mean "rank"?',
        'r.toml:13: heads.c.rank: found the text "x", expected an integer',
        'r.toml:15: stages.s.job: unknown job "trian"; did you mean "train"?',
        "r.toml:16: stages.t.objective: missing, expected a table with `use`, the name of one of the objectives",
        "r.toml:18: stages.t.steps: 'steps' must be >= 1: 0",
    ]


def test_sections_of_the_wrong_shape() -> None:
    assert complaints('backbone = "grid"\nheads = 3\nstages.x = "train"\n[data]\nvideo = ""\nuse = 4') == [
        'r.toml:1: backbone: found the text "grid", expected a table with `use`, the name of one of the backbones',
        "r.toml:2: heads: found the number 3, expected a table",
        'r.toml:3: stages.x: found the text "train", expected a table with `job`, the name of a job',
        "r.toml:6: data.use: found the number 4, expected the name of one of the datasets",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "a/b"', 'name: "a/b" is not a name for a recipe'),
        ('[heads."../x"]\nuse = "linear"', 'heads: "../x" is not a name'),
        ('[memories.dept]\nuse = "linear"\n[heads.depth]\nuse = "linear"', 'memories: "dept" serves no head'),
        ("threads = 0", "threads: found 0, expected at least 1 thread"),
        ('weights = "~/w"', '"~" is not expanded; write "${env:HOME}/w"'),
        ('weights = ""', 'weights: found the text "", expected a path'),
    ],
)
def test_names_and_numbers_have_their_limits(text: str, complaint: str) -> None:
    (line,) = complaints(f"{text}\n{SMALL}")
    assert complaint in line


def test_a_field_of_an_unknown_type_is_the_components_fault() -> None:
    (line,) = complaints(f'{SMALL}[heads.x]\nuse = "careless"')
    assert line.startswith("r.toml:6: heads.x.use: a Config has a field of type typing.Any, which recipes do not know")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a = 1\nb = = 2\n", "r.toml:2: column 5: this is not valid TOML: "),
        ("a = 1\na = 2\n", "r.toml:2: column 6: this is not valid TOML: "),
        ("a = [1,\n\n", "r.toml:2: the end of the file: this is not valid TOML: "),
    ],
)
def test_damaged_toml_is_one_sentence_with_line_and_column(text: str, complaint: str) -> None:
    (line,) = complaints(text)
    assert line.startswith(complaint)
    assert len(line) > len(complaint)


def test_nested_beyond_reason() -> None:
    for depth in (101, 300, 450, 2000):
        for text in ("a = " + "[" * depth + "]" * depth, f"{'a.' * depth}a = 1", "a = " + "{b = " * depth):
            (line,) = complaints(text)
            assert "nested too deeply" in line or "not valid TOML" in line


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*no\.toml: No such file"):
        load_recipe(tmp_path / "no.toml", resolver=Parts())
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*: Is a directory"):
        load_recipe(tmp_path, resolver=Parts())
    (tmp_path / "clip.toml").write_bytes(b"\xff\xfe\x00video")
    with pytest.raises(RecipeError, match=r"clip\.toml is not a recipe: it is not UTF-8 text"):
        load_recipe(tmp_path / "clip.toml", resolver=Parts())


def test_tables_instead_of_a_text() -> None:
    tables = {"backbone": {"use": "grid", "patch": "x"}, "data": {"video": "a.mp4"}}
    with pytest.raises(RecipeError, match=r'^mine: backbone\.patch: found the text "x", expected an integer$'):
        parse(tables, name="mine", resolver=Parts())
    tables["backbone"]["patch"] = 4
    recipe = parse(tables, name="mine", base="/b", resolver=Parts())
    assert (recipe.backbone.config, recipe.data.config.video) == (Grid.Config(4), "/b/a.mp4")


def test_configs_are_what_attrs_makes_of_them() -> None:
    assert attrs.asdict(head("taps = []"))["window"] == {"frames": 16, "overlap": 8}


def test_importing_recipes_imports_neither_torch_nor_the_registry() -> None:
    code = "import sys, fourd_core.recipe; print({'torch', 'fourd_core.registry', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
