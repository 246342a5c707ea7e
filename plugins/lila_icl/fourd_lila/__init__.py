"""LILA: pixel features learned from video by linear in-context learning.

The objective is in `objective.py`; it is put together from `crops.py` (two differently cropped views of a pair of
frames), `cues.py` (what teachers say about the pair, and where to trust them), `distillation.py` (the encoder's own
features as one more teacher). `cue_error.py` measures how well it learned.
Source: LILA (CVPR 2026, arXiv 2604.26488) and its reference code google-research/lila.
"""
