"""What a checkpoint looks like from outside: its families of keys, its sizes, and whose it seems to be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fourd_core.errors import WeightsError
from fourd_core.weights.assets import WeightsAsset, all_assets
from fourd_core.weights.formats import Format
from fourd_core.weights.reading import read_format, read_tensors

_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""What safetensors calls the types that torch has other names for."""


@attrs.frozen
class Size:
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@attrs.frozen
class Contents:
    """A checkpoint without its numbers."""

    format: Format
    tensors: dict[str, Size]
    metadata: dict[str, str]
    """The texts that a safetensors file carries; empty for the other formats."""

    @property
    def parameters(self) -> int:
        """How many numbers there are in all, buffers and repeated tensors included."""
        return sum(size.count for size in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors there are of each type, the most frequent first."""
        return dict(Counter(size.dtype for size in self.tensors.values()).most_common())


def look_into(path: Path, location: str) -> Contents:
    """What a checkpoint holds; of a safetensors file only the header is read.

    Raises:
        WeightsError: as `read_state_dict`, only that the numbers may be any.
    """
    kind = read_format(path, location)
    if kind != "safetensors":
        state = read_tensors(path, location)
        return Contents(kind, {key: Size(tuple(t.shape), str(t.dtype)[6:]) for key, t in state.items()}, {})
    try:
        with safe_open(path, "pt") as handle:
            slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 - not a dict
            sizes = {
                key: Size(tuple(part.get_shape()), _SAFETENSORS.get(part.get_dtype(), part.get_dtype()))
                for key, part in slices.items()
            }
            return Contents(kind, sizes, handle.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"the checkpoint {location} is damaged or cut short ({error}): fetch it again") from error


def describe_checkpoint(state: Mapping[str, Tensor | Size]) -> str:
    """Whose weights these seem to be, as the main clause of a sentence, by the keys alone."""
    found = families(state)
    if found:
        return f"it looks like {' or '.join(found)}"
    groups = [f"{name} ({count})" for name, count in Counter(key.split(".")[0] for key in state).most_common(4)]
    return f"no installed plugin knows its {len(state)} keys, which begin with {', '.join(groups)}"


def families(keys: Iterable[str]) -> list[str]:
    """The assets whose signature the keys fit, as "name (summary)".

    A prefix that all keys have in common (`module.`, `model.`) makes no difference. Of two assets that fit, one whose
    signature contains the other's is the better guess.
    """
    names = list(keys)
    fitting = [item.asset for item in all_assets()[0] if has_signature(item.asset, names)]
    best = [a for a in fitting if not any(set(a.signature) < set(b.signature) for b in fitting)]
    return [f"{asset.name} ({asset.summary})" for asset in best]


def has_signature(asset: WeightsAsset, keys: Iterable[str]) -> bool:
    """Whether each part of an asset's signature begins at least one key; never so without a signature."""
    return bool(asset.signature) and any(
        all(any(key.startswith(part) for key in level) for part in asset.signature)
        for level in _without_common_prefix(list(keys))
    )


def _without_common_prefix(keys: list[str]) -> Iterator[list[str]]:
    """The keys, and again and again without the first component while all share it."""
    while keys:
        yield keys
        if not all("." in key for key in keys) or len({key.partition(".")[0] for key in keys}) > 1:
            return
        keys = [key.partition(".")[2] for key in keys]


Keys = list[tuple[tuple[str, ...], Size]]


def key_tree(tensors: Mapping[str, Size], depth: int = 3) -> list[tuple[str, int, int]]:
    """The families of keys, outermost first: (indented prefix, tensors, numbers).

    Args:
        depth: how many levels are shown; what does not branch costs none, and numbered blocks (`0-39`) are one.
    """
    return list(_branches([(tuple(key.split(".")), size) for key, size in tensors.items()], depth, ""))


def _branches(keys: Keys, depth: int, indent: str) -> Iterator[tuple[str, int, int]]:
    for label, inside in _by_first_component(keys).items():
        while all(key for key, _ in inside) and len(deeper := _by_first_component(inside)) == 1:
            ((more, inside),) = deeper.items()
            label += f".{more}"
        yield f"{indent}{label}", len(inside), sum(size.count for _, size in inside)
        if depth > 1 and any(len(key) > 1 for key, _ in inside):
            yield from _branches(inside, depth - 1, f"{indent}  ")


def _by_first_component(keys: Keys) -> dict[str, Keys]:
    numbers = sorted({int(key[0]) for key, _ in keys if key and key[0].isdecimal()})
    span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else ""
    groups: dict[str, Keys] = {}
    for key, size in keys:
        if key:
            groups.setdefault(span if span and key[0].isdecimal() else key[0], []).append((key[1:], size))
    return groups
