"""Seeds as a function of what they are for, so that nothing depends on the order of draws.

A counter-based seed (recipe seed, stage, step, sample ...) makes an interrupted training continue exactly where an
uninterrupted one would be, without saving any generator's state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose; equal inputs give equal seeds on every machine."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator that is used for one purpose only."""
    return torch.Generator().manual_seed(seed_for(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Torch's global generators seeded for one purpose inside the block, and as they were after it."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_for(seed, *purpose))
        yield
