"""How many positions' logits exist at once: for the pass that makes them, and for whoever plans it.

Plain arithmetic, without torch, so that an estimate and the engine cannot disagree.
"""

from __future__ import annotations

# Bytes of one chunk's two tables of float32 logits, and the rows that a chunk has at least and at
# most: matrix products are slow with few rows, and gain nothing from more.
_CHUNK_BYTES = {"cpu": 224 * 2**20, "cuda": 4 * 2**30}
_FEWEST_ROWS, _MOST_ROWS = 32, {"cpu": 256, "cuda": 8192}

# Entries of one block's table, of which a comparison reads two and writes four.
_BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**27}


def rows_per_chunk(vocabulary: int, kind: str) -> int:
    """Return how many positions go through the heads together on this kind of device."""
    known = kind if kind in _CHUNK_BYTES else "cpu"
    fitting = _CHUNK_BYTES[known] // (2 * 4 * vocabulary)
    return min(max(_FEWEST_ROWS, fitting), _MOST_ROWS[known])


def rows_per_block(vocabulary: int, kind: str) -> int:
    """Return how many of them are compared at once, with all tables in the processor's cache."""
    known = kind if kind in _BLOCK_ENTRIES else "cpu"
    return max(1, _BLOCK_ENTRIES[known] // vocabulary)
