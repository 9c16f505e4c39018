"""Measuring: time, bytes and roofs of a step, perplexity, embeddings."""
