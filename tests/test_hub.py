"""Names of the Hugging Face hub to files: which file is chosen, and what errors say. No network: the hub is a fake."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ikpy_llm.engine.file import hub
from ikpy_llm.errors import IkpyError

FILES = [
    "README.md",
    "mmproj-m-f16.gguf",
    "m-Q2_K.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "UD/m-UD-Q4_K_XL.gguf",
    "m-iq4_xs.gguf",
    "big/m-Q8_0-00002-of-00002.gguf",
    "big/m-Q8_0-00001-of-00002.gguf",
    "m.imatrix.gguf",
]


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        (None, ["m-Q4_K_M.gguf"]),
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("Q4_K_S", ["m-Q4_K_S.gguf"]),
        ("IQ4_XS", ["m-iq4_xs.gguf"]),
        ("UD-Q4_K_XL", ["UD/m-UD-Q4_K_XL.gguf"]),
        ("q8_0", ["big/m-Q8_0-00001-of-00002.gguf", "big/m-Q8_0-00002-of-00002.gguf"]),
    ],
)
def test_choice(quant, expected):
    assert hub.choose(FILES, quant, "u/r") == expected


def test_choice_without_the_default_and_mistakes():
    assert hub.choose(["b-Q8_0.gguf", "a-Q6_K.gguf"], None, "u/r") == ["a-Q6_K.gguf"]
    for files, quant, part in (
        (["README.md"], None, "no GGUF file"),
        (FILES, "Q5_0", "there are: UD/m-UD-Q4_K_XL.gguf, big/m-Q8_0.gguf"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "-hff FILE"),
        (["m-Q8_0-00001-of-00003.gguf"], None, "1 of 3 parts"),
    ):
        with pytest.raises(IkpyError, match=part):
            hub.choose(files, quant, "u/r")
    for name in ("repo", "a/b/c", "u/r r", ""):
        with pytest.raises(IkpyError, match="user/repo"):
            hub.split_name(name)


def test_addresses_of_files():
    url = "https://huggingface.co/u/r/resolve/main/sub/m-Q4_0.gguf?download=true"
    assert hub.split_url(url) == ("u/r", "sub/m-Q4_0.gguf")
    with pytest.raises(IkpyError, match="only files of"):
        hub.split_url("https://example.com/m.gguf")


class Fake:
    """A hub with the files above; `raises` instead of an answer."""

    def __init__(self, tmp_path: Path, raises=None, cached=()):
        self.tmp_path, self.raises, self.cached, self.calls = tmp_path, raises, cached, []

    def HfApi(self, token=None):
        self.calls.append(("api", token))
        return SimpleNamespace(list_repo_files=self._list)

    def _list(self, repo):
        if self.raises:
            raise self.raises
        return FILES

    def snapshot_download(self, repo, local_files_only, allow_patterns):
        assert local_files_only
        if not self.cached:
            raise type("LocalEntryNotFoundError", (Exception,), {})("no snapshot")
        for name in self.cached:
            (self.tmp_path / name).write_bytes(b"")
        return str(self.tmp_path)

    def hf_hub_download(self, repo, name, token, local_files_only):
        self.calls.append((repo, name, token, local_files_only))
        if self.raises:
            raise self.raises
        return str(self.tmp_path / name)


def test_resolve(tmp_path):
    fake = Fake(tmp_path)
    assert hub.resolve("u/r", api=fake, token="t", offline=False) == tmp_path / "m-Q4_K_M.gguf"
    assert fake.calls == [("api", "t"), ("u/r", "m-Q4_K_M.gguf", "t", False)]
    fake = Fake(tmp_path)
    assert hub.resolve("u/r:Q8_0", api=fake, offline=False).name == "m-Q8_0-00001-of-00002.gguf"
    assert [call[1] for call in fake.calls[1:]] == hub.choose(FILES, "Q8_0", "")
    fake = Fake(tmp_path)
    hub.resolve("u/r", "x-00002-of-00002.gguf", api=fake, offline=False)  # a named file needs no list
    assert [call[1] for call in fake.calls] == ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]


def test_offline(tmp_path, monkeypatch):
    fake = Fake(tmp_path, cached=["m-Q4_K_M.gguf"])
    assert hub.resolve("u/r", api=fake, offline=True).name == "m-Q4_K_M.gguf"
    assert fake.calls == [("u/r", "m-Q4_K_M.gguf", None, True)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(IkpyError, match="run once without --offline"):
        hub.resolve("u/r", api=Fake(tmp_path))


def error(name, status=None, base=Exception):
    found = type(name, (base,), {})("what the\nhub says")
    found.response = SimpleNamespace(status_code=status)
    return found


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        (error("RepositoryNotFoundError", 404), "no repository u/r"),
        (error("RepositoryNotFoundError", 401), "HF_TOKEN"),
        (error("GatedRepoError", 403), "https://huggingface.co/u/r"),
        (error("EntryNotFoundError", 404), "has no file f.gguf"),
        (error("ConnectError"), "cannot be reached"),
        (error("Oops", base=ConnectionError), "cannot be reached"),
        (error("LocalEntryNotFoundError"), "cannot be reached"),
        (error("HfHubHTTPError", 500), "what the hub says"),
    ],
)
def test_errors_say_what_to_do(tmp_path, raised, part):
    with pytest.raises(IkpyError, match=part) as caught:
        hub.resolve("u/r", "f.gguf", api=Fake(tmp_path, raises=raised), offline=False)
    assert "\n" not in str(caught.value)


def test_the_real_library_has_what_we_call():
    real = pytest.importorskip("huggingface_hub")
    assert all(hasattr(real, name) for name in ("HfApi", "hf_hub_download", "snapshot_download"))
    from huggingface_hub import errors

    for name in ("RepositoryNotFoundError", "GatedRepoError", "EntryNotFoundError", "LocalEntryNotFoundError"):
        assert hasattr(errors, name)
