"""Joins the symbols of a word pair by pair, best pair first: the heart of BPE and of SentencePiece vocabularies."""

import re
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import chain

SPACE = "\u2581"  # stands for a space inside pieces of SentencePiece
CACHED_WORDS = 100_000
CACHED_LENGTH = 200  # characters; longer words seldom come again
AT_ONCE = 2048  # symbols merged in one go; longer words are merged in parts


def joined(words: Iterable[str], cache: dict[str, list[int]], encode_word: Callable[[str], list[int]]) -> list[int]:
    """The ids of all words one after the other; `cache` keeps those of words seen before."""
    words = list(words)
    new = [word for word in dict.fromkeys(words) if word not in cache]
    for word in new:
        cache[word] = encode_word(word)
    out = list(chain.from_iterable(map(cache.__getitem__, words)))
    for word in new:
        if len(word) > CACHED_LENGTH:
            del cache[word]
    if len(cache) > CACHED_WORDS:
        cache.clear()
    return out


def cutter(text: str, before_space: str) -> re.Pattern:
    """Cuts words off before SPACE where no piece lies across, so that each can be encoded on its own.

    `text` holds all pieces or merges with NUL between; what the pattern `before_space` finds in it are the characters X
    for which some piece has X and SPACE side by side.
    """
    kept = "".join(sorted(set(re.findall(before_space, text))))
    return re.compile(f"(?<=[^{re.escape(kept)}])(?={SPACE})" if kept else f"(?={SPACE})", re.DOTALL)


def merge(symbols: list[bytes], ranks: dict[bytes, float], joint: bytes) -> list[bytes]:
    """Merge neighbours until no pair has a rank; lowest rank first, leftmost among equals.

    The rank of a pair is `ranks[left + joint + right]`. Takes n log n steps.
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


def merge_letters(word: str, ranks: dict[bytes, float], joint: bytes) -> list[bytes]:
    """`merge` of the characters of a word of any length, in parts where it is long.

    Parts give what the whole would: merging never crosses the border of two pieces that stay two pieces when they are
    merged on their own. So where the last piece of one part and the first of the next do not stay, some more pieces
    around the border are merged anew, until the outermost of them stay beside their neighbours.
    """
    if len(word) <= AT_ONCE:
        return merge([letter.encode() for letter in word], ranks, joint)

    def again(pieces):
        return merge([letter.encode() for letter in b"".join(pieces).decode()], ranks, joint)

    def stay(a, b):
        return again((a, b)) == [a, b]

    out = []
    for start in range(0, len(word), AT_ONCE):
        part, n_left, n_right = again([word[start : start + AT_ONCE].encode()]), 1, 1
        while out:
            n_left, n_right = min(n_left, len(out)), min(n_right, len(part))
            middle = again(out[-n_left:] + part[:n_right])
            left_stays = n_left == len(out) or stay(out[-n_left - 1], middle[0])
            right_stays = n_right == len(part) or stay(middle[-1], part[n_right])
            if left_stays and right_stays:
                out[-n_left:] = middle
                part = part[n_right:]
                break
            n_left, n_right = n_left if left_stays else 2 * n_left, n_right if right_stays else 2 * n_right
        out += part
    return out
