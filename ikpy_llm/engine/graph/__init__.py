"""The graph of one step as a model function builds it, and what the metadata says of the model."""
