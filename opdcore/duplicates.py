"""Texts that repeat an earlier one: equal once case and spaces are levelled, or nearly so.

Nearness is the Jaccard index of the sets of their pieces: twelve letters from the start of each word, and
four from each character of a number or of a script other than Latin. What very many texts share, such as a
template's words, tells none of them apart and is left out. Found by prefix filtering (Bayardo et
al., WWW 2007): two sets that are near share one of the few rarest pieces of each, so an index over
those finds every near pair. It knows texts alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

_PIECE = re.compile(r"(?<![a-z])(?=([a-z].{0,11}|.{1,4}))")
# A piece is a template's if more texts have it than this share of them, and than this number.
SHARED_BY, SHARED_AT_LEAST = 0.2, 50

Pieces = frozenset[str]


class Repeat(NamedTuple):
    """The place of the earlier text that one repeats, and whether word for word."""

    of: int
    exact: bool


def repeats(texts: Sequence[str], *, similarity: float) -> dict[int, Repeat]:
    """Return the places of texts that repeat an earlier one that repeats none itself.

    `similarity` is the least Jaccard index of a near one; at 1 only equal texts are found.
    """
    first: dict[str, int] = {}
    found: dict[int, Repeat] = {}
    for place, text in enumerate(map(normalised, texts)):
        earlier = first.setdefault(text, place)
        if earlier != place:
            found[place] = Repeat(earlier, exact=True)
    if similarity < 1:
        distinct = {place: text for text, place in first.items()}
        near = _near(distinct, similarity)
        found |= {place: Repeat(of, exact=False) for place, of in near.items()}
        # Who is equal to a near duplicate repeats what that one repeats.
        found |= {
            place: Repeat(near[one.of], exact=False)
            for place, one in found.items()
            if one.exact and one.of in near
        }
    return found


def normalised(text: str) -> str:
    """The text without differences of case, of width and of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _near(texts: dict[int, str], similarity: float) -> dict[int, int]:
    """The earlier place that each near duplicate repeats; places rise."""
    pieces = {place: frozenset(_PIECE.findall(text)) for place, text in texts.items()}
    frequency = Counter(piece for own in pieces.values() for piece in own)
    most = max(SHARED_AT_LEAST, SHARED_BY * len(texts))
    common = {piece for piece, count in frequency.items() if count > most}
    index: defaultdict[str, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for place, whole in pieces.items():
        own = pieces[place] = whole - common
        # Two sets whose Jaccard index is at least t share one of the rarest n - ceil(t n) + 1 of each.
        rarest = sorted(own, key=lambda piece: (frequency[piece], piece))
        prefix = rarest[: len(own) - math.ceil(similarity * len(own) - 1e-9) + 1]
        rivals = {rival for piece in prefix for rival in index[piece]}
        alike = [one for one in rivals if _are_near(own, pieces[one], similarity)]
        if alike:
            found[place] = min(alike)
            continue
        for piece in prefix:
            index[piece].append(place)
    return found


def _are_near(one: Pieces, other: Pieces, similarity: float) -> bool:
    smaller, larger = sorted((len(one), len(other)))
    # No more than the smaller set can be common: most rivals end here.
    if smaller < similarity * larger:
        return False
    common = len(one & other)
    return common >= similarity * (smaller + larger - common)
