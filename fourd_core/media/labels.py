"""Captions on pictures, in small capitals of five by seven dots: enough for the names of heads and a few numbers."""

from __future__ import annotations

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

# Each glyph as its seven rows from top to bottom.
_GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01110 10001 10000 10000 10000 10001 01110",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01110 10001 10000 10111 10001 10001 01110",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 10101 10011 10001 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "01110 10000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00001 01110",
    " ": "00000 00000 00000 00000 00000 00000 00000",
    ".": "00000 00000 00000 00000 00000 01100 01100",
    "-": "00000 00000 00000 11111 00000 00000 00000",
    "+": "00000 00100 00100 11111 00100 00100 00000",
    "_": "00000 00000 00000 00000 00000 00000 11111",
    "/": "00001 00001 00010 00100 01000 10000 10000",
    ":": "00000 01100 01100 00000 01100 01100 00000",
}
_HEIGHT, _ADVANCE = 7, 6
_INK, _GROUND = 235, 40


def text_dots(text: str) -> Bool[Tensor, "7 w"]:
    """A line of text as dots, six columns a letter; small letters become capitals, unknown signs a gap."""
    glyphs = [_GLYPHS.get(letter, _GLYPHS[" "]).split() for letter in text.upper()]
    rows = ["".join(f"{glyph[row]}0" for glyph in glyphs) for row in range(_HEIGHT)]
    return torch.tensor([[dot == "1" for dot in row] for row in rows]).reshape(_HEIGHT, -1)


def label(text: str, width: int) -> UInt8[Tensor, "3 h w"]:
    """A dark strip with a line of text, cut off where the strip ends; larger on wide strips where the text fits."""
    scale = 2 if width >= 2 * _ADVANCE * (len(text) + 1) else 1
    dots = text_dots(text).repeat_interleave(scale, 0).repeat_interleave(scale, 1)[:, : max(0, width - _ADVANCE)]
    strip = torch.full((3, 2 * (_HEIGHT + 3), width), _GROUND, dtype=torch.uint8)
    top, left = (strip.shape[1] - dots.shape[0]) // 2, _ADVANCE // 2
    strip[:, top : top + dots.shape[0], left : left + dots.shape[1]][:, dots] = _INK
    return strip
