"""Kernels written once for every quantization type. layout.py (sizes, no Numba) and api.py (NumPy in, NumPy out) are
for everybody; the rest is compiled by jit.

How a product y = W x runs (words of each kernel: docstring of its factory):
    pack(type)           once: file rows -> panels of layout.weight_bytes(type, rows, k) bytes; tells of numbers that
                         are not finite. finite(type) only does that, for rows that are not woven
    quantize(source, t)  x f32 [n][k] -> acts of L.n_bytes(n, k) bytes, where L = ActsLayout(t, flavours, is_float).
                         flavours = layout.flavour() of all types that read these acts; float types need acts of their
                         own. Flavour words are first * 256 + second for each of L.stored, then 0
    gemv(type, n)        acts with t = n, 1 to 8 columns. Words: stride = L.stride, start = L.start(flavour) or 0
    gemm(type)           acts with t = layout.gemm_tile(), any n. Scratch: layout.gemm_scratch_bytes(n) per thread
    gemm(type, rows_layout=True), gemv_rows(type)    the same from the file's rows, for weights that are not woven
y may be the residual. All of them give a column the same bits whatever n and nth are.
"""
