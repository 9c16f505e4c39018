"""Kernels over rows and heads: norms, activations, rotary embedding, storing keys and values."""
