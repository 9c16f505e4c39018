"""SIMD for kernels: `from ikpy_llm.kernels import simd`. Names are loaded on first use, so importing this package
does not import Numba.

Types    F32 I32V U32V F16 U16 (LANES elements), U8 I8V I16V (as many bytes as F32), U8L I8L (one byte per f32 lane),
         U8X8 U8X16 U8X32 U16X16; Vec(elem, lanes), Tile(vec, n).
Use      + - * / & | ^ << >> and comparisons on vectors and tiles, a scalar beside a vector is splat; every op below
         takes tiles too.
Memory   load(VT, addr) store(addr, v) splat(VT, x) splat_load(VT, addr) splat4(VT, addr) zeros(VT) iota(VT)
         prefetch(addr), prefetch_l2(addr)
         tile_zeros(VT, n) tile_load(VT, n, addr, stride) tile_splat(...) tile_splat4(...) get(tile, i)
         tile_store(addr, stride, tile) outer_fma(acc, x, y)
         load_u8 load_i8 load_u16 load_i16 load_i32 load_u32 load_i64 load_f16 load_f32 (addr) -> int64 or float32;
         store_u8 ... store_f32(addr, x)
Convert  cast(VT, v) bits(VT, v) f32_bits(x) f32_from_bits(i) f16_from_bits(i) bf16_to_f32(v) bytes16(i, k)
Math     fma rint floor sqrt absolute minimum maximum select(mask, x, y) field(v, shift, width) exp silu gelu
         dot4 dot4_small dot4_centred dot2; dots.Dots: sums of many products
Lanes    reduce_add reduce_max join low high interleave_low interleave_high lookup(table, index) bits32(mask)
Threads  atomic_add atomic_swap_if atomic_load atomic_store pause sched_yield wait_on wake_all clock call_kernel
         get_affinity set_affinity this_cpu (Linux)
Signals  own_word map_zeros set_action (Linux)
Build    stack(bytes) table16(values) byte_table(data): functions without arguments, made while a kernel is built
Also     inline: decorator for helper functions of kernels; LANES, TARGET.
"""

from . import target


def __getattr__(name: str):
    if name == "LANES":
        return target.current().lanes
    if name.startswith("__"):
        raise AttributeError(name)
    import importlib

    # x86, arm and emulated define nothing to import, they register bodies
    for module in [
        importlib.import_module(f"{__name__}.{part}")
        for part in ("ops", "mathfn", "threads", "faults", "core", "x86", "arm", "emulated")
    ][:5]:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"simd has no {name!r}")
