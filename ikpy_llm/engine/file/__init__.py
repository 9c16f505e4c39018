"""Reading models: GGUF files, where they come from, and tensors that are computed from theirs."""
