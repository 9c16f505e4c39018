"""Joins the symbols of a word pair by pair, best pair first: the heart of BPE and of SentencePiece vocabularies."""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

CACHED_WORDS = 100_000


def joined(words: Iterable[str], cache: dict[str, list[int]], encode_word: Callable[[str], list[int]]) -> list[int]:
    """The ids of all words one after the other; `cache` keeps those of words seen before."""
    out = []
    for word in words:
        ids = cache.get(word)
        if ids is None:
            if len(cache) >= CACHED_WORDS:
                cache.clear()
            ids = cache[word] = encode_word(word)
        out += ids
    return out


def merge(symbols: list[bytes], ranks: dict[bytes, float], joint: bytes) -> list[bytes]:
    """Merge neighbours until no pair has a rank; lowest rank first, leftmost among equals.

    The rank of a pair is `ranks[left + joint + right]`. Takes n log n steps: a word may be as long as the text.
    """
    n = len(symbols)
    following, before = list(range(1, n + 1)), list(range(-1, n - 1))
    heap = []
    for i in range(n - 1):
        rank = ranks.get(symbols[i] + joint + symbols[i + 1])
        if rank is not None:
            heap.append((rank, i, len(symbols[i]) + len(symbols[i + 1])))
    heapify(heap)
    while heap:
        _, i, size = heappop(heap)
        left, j = symbols[i], following[i]
        if left is None or j == n or len(left) + len(symbols[j]) != size:
            continue  # one of the two has been merged with another neighbour since
        symbols[i], symbols[j] = left + symbols[j], None
        k, h = following[j], before[i]
        following[i] = k
        if k < n:
            before[k] = i
            rank = ranks.get(symbols[i] + joint + symbols[k])
            if rank is not None:
                heappush(heap, (rank, i, len(symbols[i]) + len(symbols[k])))
        if h >= 0:
            rank = ranks.get(symbols[h] + joint + symbols[i])
            if rank is not None:
                heappush(heap, (rank, h, len(symbols[h]) + len(symbols[i])))
    return [symbol for symbol in symbols if symbol is not None]
