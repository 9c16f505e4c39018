"""Types of the key/value cache: how rows are quantized, stored and read."""
