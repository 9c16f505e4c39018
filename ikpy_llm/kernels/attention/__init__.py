"""Attention kernels: split-KV flash attention over plain, quantized and latent caches."""
