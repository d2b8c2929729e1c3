"""Randomness as an argument: every draw has a key made from (study seed, arm, step, purpose, …).

There is no global generator anywhere in statewise, so there is no generator state to save: a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_key(*parts: int | str) -> int:
    """A 64-bit key that depends on every part and its type; the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A counter-based (Philox) generator of its own for the draw that `parts` name."""
    return np.random.Generator(np.random.Philox(key=derive_key(*parts)))
