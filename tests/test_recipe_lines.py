"""The scanner against tomllib: the same keys, and each on its line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fourd_core.recipe.lines import KeyPath, key_lines, split_key

ODD = '''\
# [not.a.table]
a.b = 1 # c = 2
"q.x" . 'y z' = [1, # ]
  "]", """
  d = 4
  \\"""", { z = 3, w.v = [2,
  8] } ]
[t]  # [no]
s = \'\'\'
k = 1
[u]\'\'\'
[[items]]
n = 1979-05-27 07:32:00
[items.sub]
m = """a"""""
[[items]]
[[items.deep]]
"\\u00e9" = inf
[[items.deep]]
[ t . "u" ]
empty = {}
last = ''
'''
ODD_LINES: dict[KeyPath, int] = {
    ("a",): 2,
    ("a", "b"): 2,
    ("q.x",): 3,
    ("q.x", "y z"): 3,
    ("q.x", "y z", 0): 3,
    ("q.x", "y z", 1): 4,
    ("q.x", "y z", 2): 4,
    ("q.x", "y z", 3): 6,
    ("q.x", "y z", 3, "z"): 6,
    ("q.x", "y z", 3, "w"): 6,
    ("q.x", "y z", 3, "w", "v"): 6,
    ("q.x", "y z", 3, "w", "v", 0): 6,
    ("q.x", "y z", 3, "w", "v", 1): 7,
    ("t",): 8,
    ("t", "s"): 9,
    ("items",): 12,
    ("items", 0): 12,
    ("items", 0, "n"): 13,
    ("items", 0, "sub"): 14,
    ("items", 0, "sub", "m"): 15,
    ("items", 1): 16,
    ("items", 1, "deep"): 17,
    ("items", 1, "deep", 0): 17,
    ("items", 1, "deep", 0, "é"): 18,
    ("items", 1, "deep", 1): 19,
    ("t", "u"): 20,
    ("t", "u", "empty"): 21,
    ("t", "u", "last"): 22,
}


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every path of a parsed document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def test_odd_but_valid_toml() -> None:
    assert key_lines(ODD) == ODD_LINES
    assert set(ODD_LINES) == set(paths(tomllib.loads(ODD)))


def test_carriage_returns_and_a_missing_last_newline() -> None:
    assert key_lines(ODD.replace("\n", "\r\n")) == ODD_LINES
    assert key_lines("a = 1\nb = 2") == {("a",): 1, ("b",): 2}
    assert key_lines("") == {}


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.text("\"'\\#[]{}=,.\n ab", max_size=12)
values = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.floats() | texts | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)  # a busy machine is not a mistake
@given(st.dictionaries(texts, values, max_size=4), st.booleans())
def test_the_paths_are_those_of_tomllib(data: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(data, multiline_strings=multiline)
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    last = len(text.splitlines())
    assert all(1 <= line <= max(last, 1) for line in lines.values())


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6, unique=True), st.lists(texts, min_size=6, max_size=6))
def test_a_key_stands_where_it_was_written(keys: list[str], contents: list[str]) -> None:
    text, expected = "", {}
    for key, content in zip(keys, contents, strict=False):
        expected[key,] = text.count("\n") + 1
        text += tomli_w.dumps({key: content}, multiline_strings=True) + "# \"'[{\n\n"
    assert key_lines(text) == expected


def test_dotted_keys_and_what_follows() -> None:
    assert split_key("a.b=1") == (("a", "b"), "=1")
    assert split_key(" a . 'b.c=d' . \"\\u00e9\" = x=y") == (("a", "b.c=d", "é"), "= x=y")
    for bad in ("", "=1", "a.", "a..b", "é=1", '"open'):
        with pytest.raises(ValueError, match="unexpected text"):
            split_key(bad)
