"""Depth Anything V2: relative disparity of single pictures, as a cue."""
