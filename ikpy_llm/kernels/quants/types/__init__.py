"""Quantization types, one file each; the folder is the registry."""
