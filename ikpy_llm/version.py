"""The version, stated once: pyproject.toml, `ikpy --version` and benchmark records read it here."""

VERSION = "0.1.0"
