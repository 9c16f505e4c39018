"""NumPy decoders of the types that only ik_llama.cpp has; see reference_formats.py."""

from __future__ import annotations

import numpy as np
from reference_bits import HALF, IQ4, QUARTER, J, digit, four, nibble, none, one, rows_of_nibbles, table_format, two

# ---------------------------------------------------------------- levels of ik_llama.cpp, which some sub-blocks shift
IQ2K = np.array([-31, -13, 1, 17])
IQ3K = np.array([-63, -40, -23, -10, 1, 13, 28, 47])
IQ5K = np.array(
    [-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6]
    + [-1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121]
)
IQ6K = np.array(
    [-127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54]
    + [-51, -47, -44, -40, -37, -34, -31, -28, -25, -22, -19, -16, -13, -11, -8, -5]
    + [-2, 0, 3, 6, 9, 12, 14, 17, 20, 23, 27, 30, 33, 36, 40, 44]
    + [47, 51, 55, 59, 63, 68, 72, 77, 82, 87, 92, 98, 103, 109, 115, 121]
)
IQ2KL = (  # values of the even and of the odd column
    np.array(
        [-63, -63, -40, -40, -40, -40, -23, -23, -23, -23, -23] + [-10] * 4 + [1] * 5 + [13] * 5 + [28] * 5 + [47] * 2
    ),
    np.array(
        [-23, 13, -63, -10, 13, 47, -40, -23, 1, 13, 28, -63, 1, 13, 47, -23, -10, 1, 13, 28]
        + [-40, -23, -10, 1, 13, -63, -23, 1, 28, 47, -23, 13]
    ),
)
S, B = np.arange(16), np.arange(8)  # sub-blocks of 16, of 32


def _shifted(mask, by):
    """`by` where bit s of the mask is set, for every column of sub-block s (one for each of S, or of B)."""
    bits = mask >> (S if by[1] == 16 else B) & 1
    return by[0] * np.repeat(bits, by[1], axis=-1)


def _scale6(low, high, s):
    return (nibble(low, s) | (high[..., s // 4] >> 2 * (s % 4) & 3) << 4) - 32


def _far(a):
    """Eight nibbles of four bytes: the low ones, then the high ones."""
    return a[..., B % 4] >> 4 * (B // 4) & 15


def _high_bit(qh):
    return qh[..., J % 32] >> J // 32 & 1


def _iq2_k(b):
    return IQ2K[two(b.qs)] + _shifted(b.extra, (5, 16)), b.d * (nibble(b.sc, S) - 8), none(b)


def _iq3_k(b):
    scale = (2 * nibble(b.scales_l, S) + 1) * np.where(b.scales_h >> S & 1, -1, 1)
    return IQ3K[two(b.qs) | _high_bit(b.qh) << 2] + _shifted(b.extra, (4, 16)), b.d * scale, none(b)


def _iq4_k(b):
    code = IQ4[rows_of_nibbles(b.qs)] + _shifted(b.extra, (4, 16))
    return code, b.d * _scale6(b.scales_l, b.scales_h, S), none(b)


def _iq5_k(b):
    code = IQ5K[four(b.qs) | _high_bit(b.qh) << 4] + _shifted(b.extra, (2, 16))
    return code, b.d * _scale6(b.scales_l, b.scales_h, S), none(b)


def _iq6_k(b):
    high = b.qh[..., 32 * HALF + J % 32] >> 2 * QUARTER & 3
    return IQ6K[four(b.qs) | high << 4] + _shifted(b.extra, (1, 16)), b.d * b.sc, none(b)


def _iq2_ks(b):
    scale = (nibble(b.sc, B) | (b.extra >> 8 + B & 1) << 4) - 16
    return IQ2K[two(b.qs)] + _shifted(b.extra, (5, 32)), scale, none(b)


def _iq2_kl(b):
    p = J % 32 // 2
    pair = b.qs[..., 16 * (J // 64) + p] >> 4 * (J // 32 % 2) & 15 | (b.qh[..., p] >> J // 32 & 1) << 4
    scale = (_far(b.scales_l) | (b.scales_h >> 2 * B & 3) << 4) - 32
    return np.where(J % 2, IQ2KL[1][pair], IQ2KL[0][pair]), scale, none(b)


def _iq3_ks(b):
    scale = (_far(b.sc) | (b.extra >> B & 1) << 4) - 16
    return IQ3K[two(b.qs) | _high_bit(b.qh) << 2] + _shifted(b.extra >> 8, (4, 32)), scale, none(b)


def _odd7(c):
    """Scale and shift bit share a byte."""
    return (c & 254) - 127, np.repeat(c & 1, 32, axis=-1)


def _iq4_ks(b):
    scale, shifted = _odd7(b.sc)
    return IQ4[rows_of_nibbles(b.qs)] + 4 * shifted, scale, none(b)


def _iq4_kss(b):
    words = b.qs.reshape(*b.qs.shape[:-1], 8, 8)
    scale, shifted = _odd7(((words & 1) << B).sum(-1))
    v = words & 0xFFFE
    v = v ^ v >> 1
    byte = np.stack([v & 255, v >> 8], -1).reshape(*b.qs.shape[:-1], 128)
    return IQ4[rows_of_nibbles(byte)] + 4 * shifted, scale, none(b)


def _iq5_ks(b):
    scale, shifted = _odd7(b.sc)
    return IQ5K[four(b.qs) | _high_bit(b.qh) << 4] + 2 * shifted, scale, none(b)


# ---------------------------------------------------------------- trellis
def _trellis(state, period):
    """States [..][groups] -> values [..][columns]: bytes of state * C^(k + 1), six bits of each, added, minus 126."""
    c, values, x = np.uint64(0xCBAC1FED), [], state.astype(np.uint64)
    for _ in range(period):
        x = x * c & np.uint64(0xFFFFFFFF)
        values.append(sum((x >> np.uint64(8 * i) & np.uint64(63)).astype(np.int64) for i in range(4)) - 126)
    return np.stack(values, -1).reshape(*state.shape[:-1], -1)


def _iq1_kt(b):
    g = np.arange(32)
    seed = b.ql | (b.qh[..., g % 16] >> 4 * (g // 16) & 15) << 8 | (b.sh[..., g // 4] >> 4 + g % 4 & 1) << 12
    return _trellis(seed + 4096, 8), IQ4[b.sh & 15], none(b)


def _iq2_kt(b):
    return _trellis(b.ql + 4096, 8), IQ4[_far(b.sc)], none(b)


def _iq3_kt(b):
    return np.abs(_trellis(b.ql + 4096, 8)) * (1 - 2 * _high_bit(b.qh)), _far(b.sc), none(b)


def _iq4_kt(b):
    g = np.arange(64)
    w = b.sh[..., g // 8]
    seed = b.ql | (b.qh[..., g % 32] >> 4 * (g // 32) & 15) << 8 | (w >> 8 + 3 * (g % 8) & 7) << 12
    return _trellis(seed + 4096 + 32768 * (w & 1), 4), ((b.sh & 255) >> 1) - 64, none(b)


# ---------------------------------------------------------------- one and two bits
def _iq1_bn(b):
    j = np.arange(64)
    t, u = j % 16, j // 16
    byte = np.where(t == 15, b.extra, b.ql[..., np.minimum(3 * u + t // 5, 11)])
    return digit(byte, np.array([81, 27, 9, 3, 1])[np.where(t == 15, u, t % 5)]) - 1, one(b), none(b)


def _iq2_bn(b):
    j = np.arange(64)
    return (b.qs[..., j % 16] >> 2 * (j // 16) & 3) - 1, one(b), none(b)


IK_FORMATS = {
    "IQ2_K": table_format(31, _iq2_k, "d:f2 extra:u2 sc:u1*8 qs:u1*64", sub=16),
    "IQ3_K": table_format(63, _iq3_k, "d:f2 extra:u2 scales_h:u2 scales_l:u1*8 qs:u1*64 qh:u1*32", sub=16),
    "IQ4_K": table_format(128, _iq4_k, "d:f2 extra:u2 scales_h:u1*4 scales_l:u1*8 qs:u1*128", sub=16),
    "IQ5_K": table_format(128, _iq5_k, "d:f2 extra:u2 scales_h:u1*4 scales_l:u1*8 qs:u1*128 qh:u1*32", sub=16),
    "IQ6_K": table_format(128, _iq6_k, "d:f2 extra:u2 sc:i1*16 qs:u1*128 qh:u1*64", sub=16),
    "IQ2_KS": table_format(31, _iq2_ks, "extra:u2 sc:u1*4 qs:u1*64", row="<f2"),
    "IQ2_KL": table_format(63, _iq2_kl, "scales_h:u2 scales_l:u1*4 qs:u1*64 qh:u1*16", row="<f2"),
    "IQ3_KS": table_format(63, _iq3_ks, "extra:u2 sc:u1*4 qs:u1*64 qh:u1*32", row="<f2"),
    "IQ4_KS": table_format(128, _iq4_ks, "sc:u1*8 qs:u1*128", row="<f4"),
    "IQ4_KSS": table_format(128, _iq4_kss, "qs:u2*64", row="<f4"),
    "IQ5_KS": table_format(128, _iq5_ks, "sc:u1*8 qs:u1*128 qh:u1*32", row="<f4"),
    "IQ1_KT": table_format(126, _iq1_kt, "sh:u1*8 ql:u1*32 qh:u1*16", row="<f4"),
    "IQ2_KT": table_format(126, _iq2_kt, "sc:u1*4 ql:u2*32", row="<f4", gain=1.05),
    "IQ3_KT": table_format(126, _iq3_kt, "sc:u1*4 ql:u2*32 qh:u1*32", row="<f4", gain=1.01),
    "IQ4_KT": table_format(126, _iq4_kt, "sh:u4*8 ql:u1*64 qh:u1*32", row="<f4"),
    "IQ1_BN": table_format(1, _iq1_bn, "ql:u1*12 extra:u1", columns=64, row="<f2"),
    "IQ2_BN": table_format(1, _iq2_bn, "qs:u1*16", columns=64, row="<f4"),
    "Q8_KV": table_format(128, lambda b: (b.qs, one(b), none(b)), "qs:i1*32", columns=32, row="<f4", skip=4),
}
