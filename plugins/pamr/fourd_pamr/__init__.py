"""PAMR: coarse maps refined along the edges of a guide picture.

A function with a Config that other components carry in theirs; it is no component of its own, since its answer is not
about a clip but about a map that another component made.
"""

from fourd_pamr.refinement import ORIGINAL, PAMR, Stage

__all__ = ["ORIGINAL", "PAMR", "Stage"]
