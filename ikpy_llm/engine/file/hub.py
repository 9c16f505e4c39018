"""Model files from the Hugging Face hub: `user/repo[:QUANT]` to files in its cache, through huggingface_hub."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

from ikpy_llm.errors import IkpyError, ModelFileError, shown
from ikpy_llm.kernels.compiler import folders

log = logging.getLogger("ikpy.hub")
DEFAULT_QUANT = "Q4_K_M"
ACCEPTED = (
    "the path of a GGUF file is accepted, or a model of the Hugging Face hub: user/repo[:QUANT] (-hf), on the command "
    "line also the address of its file there (-mu)"
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.I)
_SIDE_FILES = re.compile(r"mmproj|(^|/)imatrix|imatrix\.gguf$", re.I)  # .gguf files that are no language models


def _hub():
    if not any(map(os.environ.get, ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"))) and folders.home() is None:
        folder = folders.root() / "huggingface"
        os.environ["HF_HOME"] = str(folder)  # read when the library is imported
        with contextlib.suppress(OSError, IkpyError):
            folders.make_marked(folder)
    try:
        import huggingface_hub
    except ImportError:
        raise IkpyError("models of the hub need the package huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def split_name(name: str) -> tuple[str, str | None]:
    """(user/repo, quant or None) of `user/repo[:QUANT]`."""
    repo, _, quant = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise IkpyError(f"-hf {shown(name)} is not of the form user/repo or user/repo:QUANT")
    return repo, quant or None


def is_name(name: str) -> bool:
    """May a text that is no file here be a model of the hub?"""
    repo, colon, _ = name.partition(":")
    good = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(:[\w.-]+)?", name)
    return bool(good) and bool(colon or not repo.lower().endswith(".gguf"))


def refuse_address(what: str, path: str) -> None:
    """IkpyError if a path is written like an address (https://, file://) and no such file is here.

    It is said before a Path is made of it, which has one slash where several are.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", path) and not os.path.exists(path):
        raise ModelFileError(f"{what}{shown(path)} is an address; {ACCEPTED}")


def found(path: str) -> str | Path:
    """The file of a model that a text names where no such file is: of the hub, if the text may be a name there."""
    refuse_address("", path)
    if not is_name(path):
        return path
    try:
        return resolve(path)
    except IkpyError as error:
        raise IkpyError(f"{path} is no file here; as a model of the Hugging Face hub: {error}") from None


def split_url(url: str) -> tuple[str, str]:
    """(user/repo, file) of the address of a file of the hub."""
    found = re.fullmatch(
        r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:resolve|blob)/[^/]+/(.+?)(?:\?.*)?", url
    )
    if not found:
        raise IkpyError(
            f"-mu {shown(url)}: only files of https://huggingface.co/USER/REPO are fetched; get others by other "
            "means and give them with -m"
        )
    return found[1], found[2]


def choose(files, quant: str | None, name: str) -> list[str]:
    """The GGUF files of one model, all parts of it: with the quant tag (any case), else Q4_K_M, else the first."""
    found = sorted(f for f in files if f.lower().endswith(".gguf") and not _SIDE_FILES.search(f))
    if not found:
        raise IkpyError(f"{name}: the repository has no GGUF file; look for one with GGUF in its name")
    models: dict[str, list[str]] = {}  # without the number of the part -> parts
    for file in found:
        models.setdefault(_SPLIT.sub(".gguf", file), []).append(file)
    wanted = [m for m in models if _has_tag(m, quant or DEFAULT_QUANT)]
    if quant and not wanted:
        raise IkpyError(f"{name}: no file has the tag {quant}; there are: {', '.join(sorted(models))}")
    if quant and len(wanted) > 1:
        raise IkpyError(f"{name}: {quant} is ambiguous: {', '.join(wanted)}; name one with -hff FILE")
    return _complete(models[(wanted or list(models))[0]], name)


def _has_tag(model: str, tag: str) -> bool:
    """Does a file name (or the folder it is in) carry the tag, with no letter or digit before or behind it?"""
    return bool(re.search(rf"(?<![A-Za-z0-9_]){re.escape(tag)}(?![A-Za-z0-9_])", model, re.I))


def _complete(parts: list[str], name: str) -> list[str]:
    match = _SPLIT.search(parts[0])
    if match and len(parts) != int(match[2]):
        raise IkpyError(f"{name}: the repository has {len(parts)} of {int(match[2])} parts of {parts[0]}")
    return parts


def _parts_of(file: str) -> list[str]:
    """All parts of a split model of which one is named."""
    match = _SPLIT.search(file)
    if not match:
        return [file]
    return [f"{file[: match.start()]}-{i:05}-of-{match[2]}.gguf" for i in range(1, int(match[2]) + 1)]


def resolve(
    name: str, file: str | None = None, *, token: str | None = None, offline: bool | None = None, api=None
) -> Path:
    """The first file of a model of the hub, downloaded unless it is in the cache; of a split model every part.

    name: user/repo[:QUANT]. file: a file of the repository instead of QUANT. token: for private ones, default HF_TOKEN.
    offline: use only the cache, default HF_HUB_OFFLINE. Downloads resume where they broke off.
    """
    repo, quant = split_name(name)
    api = api or _hub()
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    files = _parts_of(file) if file else None
    try:
        if files is None:
            files = choose(_cached(api, repo) if offline else api.HfApi(token=token).list_repo_files(repo), quant, name)
        paths = [Path(api.hf_hub_download(repo, part, token=token or None, local_files_only=offline)) for part in files]
    except IkpyError:
        raise
    except Exception as error:  # huggingface_hub has errors of its own, its network library others
        raise _explained(error, repo, name, file, offline) from None
    return paths[0]


def cached_models() -> list[tuple[str, int]]:
    """(user/repo/file, bytes) of every GGUF file in the cache."""
    repos = _hub().scan_cache_dir().repos
    files = {(r.repo_id, f.file_name, f.size_on_disk) for r in repos for v in r.revisions for f in v.files}
    return sorted((f"{repo}/{name}", size) for repo, name, size in files if name.lower().endswith(".gguf"))


def _cached(api, repo: str) -> list[str]:
    """Files of a repository that are in the cache."""
    folder = Path(api.snapshot_download(repo, local_files_only=True, allow_patterns=["*.gguf"]))
    return [str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file()]


def _explained(error: Exception, repo: str, name: str, file: str | None, offline: bool) -> IkpyError:
    """One line that says what to do."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"{name}/{file}" if file else name
    if offline:
        return IkpyError(f"{what} is not in the cache and --offline forbids to fetch it; run once without --offline")
    if "GatedRepoError" in kinds or status in (401, 403):
        return IkpyError(
            f"{repo} does not exist, is private, or wants its terms accepted on https://huggingface.co/{repo}; "
            "then set HF_TOKEN or give -hft TOKEN"
        )
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return IkpyError(f"{repo} has no file {file}; see https://huggingface.co/{repo}/tree/main")
    if "RepositoryNotFoundError" in kinds or status == 404:
        return IkpyError(f"the hub has no repository {repo} (a private one needs HF_TOKEN or -hft TOKEN)")
    network = ("ConnectionError", "ConnectError", "TimeoutError", "TimeoutException", "LocalEntryNotFoundError")
    network += ("OfflineModeIsEnabled", "TransportError", "NetworkError")
    if kinds & set(network):
        return IkpyError(
            f"{what}: the hub cannot be reached; check the network, or give the file itself with -m FILE "
            "(what was fetched before is found with --offline)"
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return IkpyError(f"{what}: {shown(text, 200)[1:-1]}")
