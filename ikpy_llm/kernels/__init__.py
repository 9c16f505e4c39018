"""Everything that becomes machine code: SIMD layer, JIT and object cache, quant types and their kernels."""
