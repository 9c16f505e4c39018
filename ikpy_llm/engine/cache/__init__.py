"""The key/value cache: where rows lie, and its form in a file."""
