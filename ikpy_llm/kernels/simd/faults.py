"""What a handler of a signal needs (Linux): a word of its own, pages in the place of lost ones, what comes after it."""

from __future__ import annotations

from llvmlite import ir

from .core import I8, I32, I64, TARGET, call, op
from .memory import _address, i64

LINUX = "linux" in TARGET.triple
# Of mmap(2), the same on x86-64 and AArch64: MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE.
PROT_READ, ZEROS = 1, 0x2 | 0x10 | 0x20 | 0x4000

if LINUX:

    @op(lambda: i64)
    def own_word(b, sig):
        """The address of an int64 that the kernel keeps from call to call, 0 at first."""
        name = "ikpy.own_word"
        word = b.module.globals.get(name)
        if word is None:
            word = ir.GlobalVariable(b.module, I64, name)
            word.linkage, word.initializer = "internal", I64(0)
        return b.ptrtoint(word, I64)

    @op(lambda addr, n: i64)
    def map_zeros(b, sig, addr, n):
        """Put pages of zeros, which can only be read, in the place of the n bytes at addr; addr, or -1."""
        at = b.inttoptr(addr, I8.as_pointer())
        done = call(b, "mmap", I8.as_pointer(), at, n, I32(PROT_READ), I32(ZEROS), I32(-1), I64(0))
        return b.ptrtoint(done, I64)

    @op(lambda number, addr: i64)
    def set_action(b, sig, number, addr):
        """Set what a signal does to the struct sigaction at addr; 0, or -1 where that fails."""
        new, old = _address(b, addr, I8), ir.Constant(I8.as_pointer(), None)
        return b.sext(call(b, "sigaction", I32, b.trunc(number, I32), new, old), I64)
