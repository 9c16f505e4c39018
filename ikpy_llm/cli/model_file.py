"""Which model file a command opens: -m, or one of the Hugging Face hub, fetched into its cache."""

from __future__ import annotations

from pathlib import Path

from ikpy_llm.cli.options import ModelOptions
from ikpy_llm.cli.text import write
from ikpy_llm.errors import IkpyError


def model_path(options: ModelOptions):
    """The path of the model file; None for the demo model."""
    repo, file = options.hf_repo, options.hf_file
    if options.model_url is not None:
        from ikpy_llm.engine.file import hub

        if repo or options.model:
            raise IkpyError("-mu, -hf and -m exclude each other")
        repo, file = hub.split_url(options.model_url)
    if repo is None:
        if file:
            raise IkpyError(f"-hff {file} needs -hf USER/REPO")
        return None if options.model is None else local(options.model)
    if options.model is not None:
        raise IkpyError("-hf and -m exclude each other")
    from ikpy_llm.engine.file import hub

    return hub.resolve(repo, file, token=options.hf_token, offline=options.offline or None)


def local(name: str) -> Path:
    """The file that -m names, which as a text might be a model of the hub."""
    if "://" in name:
        from ikpy_llm.engine.file import hub

        hub.refuse_address("-m ", name)
    return Path(name)


def listed(options: ModelOptions) -> bool:
    """Do what --list-devices and -cl ask for; False where neither is given."""
    if options.list_devices:
        from ikpy_llm.cli.bench import machine

        write(f"Available devices:\n  CPU: {machine.cpu_name()}\n")
    if options.cache_list:
        _list_cache()
    return options.list_devices or options.cache_list


def _list_cache() -> None:
    """Print the models of the hub in the cache, as they are written after -hf and -hff."""
    from ikpy_llm.engine.file import hub

    for name, size in hub.cached_models():
        write(f"{size / 2**20:10.1f} MiB  {name}\n")
