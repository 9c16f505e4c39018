"""A wheel is fetched without pip from where pip would fetch it. The index is a server on this machine."""

import base64
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest

from ikpy_llm.engine.file import package_index

NAME, VERSION, FILE = "some-Package", "1.2", "some_package-1.2-py3-none-any.whl"
CONTENT = bytes(range(256)) * 9000
SHA = hashlib.sha256(CONTENT).hexdigest()
OTHERS = [
    "some_package-1.1-py3-none-any.whl",
    "some_package-1.2.tar.gz",
    "some_package-1.2-cp311-cp311-linux_x86_64.whl",
]


class Index:
    """What the server answers: path -> (type, body); a path in `broken` breaks off in the middle."""

    def __init__(self):
        self.answers, self.asked, self.broken, self.login = {}, [], set(), None

    def serve(self, handler) -> None:
        self.asked.append((handler.path, handler.headers.get("Authorization")))
        kind, body = self.answers.get(handler.path, ("text/plain", None))
        expected = self.login and "Basic " + base64.b64encode(self.login.encode()).decode()
        if expected and handler.headers.get("Authorization") != expected:
            handler.send_error(401)
        elif body is None:
            handler.send_error(404)
        elif kind == "redirect":
            handler.send_response(302)
            handler.send_header("Location", body)
            handler.end_headers()
        else:
            handler.send_response(200)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2] if handler.path in self.broken else body)

    def html(self, base: str, url: str = f"../../files/{FILE}", sha: str = SHA) -> None:
        names = "".join(f'<a href="../../files/{name}">{name}</a>' for name in OTHERS)
        self.answers[f"{base}/some-package/"] = "text/html", f'{names}<a href="{url}#sha256={sha}">x</a>'.encode()
        self.answers[f"/files/{FILE}"] = "application/octet-stream", CONTENT

    def json(self, base: str) -> None:
        files = [{"filename": n, "url": f"/files/{n}", "hashes": {}} for n in OTHERS]
        files.append({"filename": FILE, "url": f"/files/{FILE}", "hashes": {"sha256": SHA}})
        page = json.dumps({"files": files}).encode()
        self.answers[f"{base}/some-package/"] = "application/vnd.pypi.simple.v1+json", page
        self.answers[f"/files/{FILE}"] = "application/octet-stream", CONTENT


@pytest.fixture
def index(monkeypatch):
    """A running server with an empty index, and no settings but PIP_INDEX_URL that names its /simple."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower() in ("http_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    own = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            own.serve(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own.host = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{own.host}/simple")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield own
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(folder: Path, n_bytes: int = len(CONTENT)) -> list:
    """Fetches; what `show` was told."""
    shown = []
    path = package_index.fetch(NAME, VERSION, folder, n_bytes, lambda *step: shown.append(step))
    assert path == folder / FILE and path.read_bytes() == CONTENT
    return shown


@pytest.mark.parametrize("form", ["html", "json"])
def test_both_forms_of_an_index(index, tmp_path, form):
    getattr(index, form)("/simple")
    shown = fetch(tmp_path)
    assert shown[-1] == (len(CONTENT), len(CONTENT)) and len(shown) > 1
    assert [path for path, _ in index.asked] == ["/simple/some-package/", f"/files/{FILE}"]


def test_settings_of_a_file(index, tmp_path, monkeypatch):
    index.html("/other")
    file = tmp_path / "pip.conf"
    file.write_text(f"[global]\nindex_url = http://{index.host}/nothing\n[download]\nextra-index-url =\n  http://"
                    f"{index.host}/none\n  http://{index.host}/other/\n")  # fmt: skip
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    fetch(tmp_path)
    assert [path.split("/")[1] for path, _ in index.asked] == ["nothing", "none", "other", "files"]


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"])
def test_settings_of_uv(index, tmp_path, monkeypatch, variable):
    index.json("/uv")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://{index.host}/nothing")
    monkeypatch.setenv(variable, f"own=http://{index.host}/uv" if variable == "UV_INDEX" else f"http://{index.host}/uv")
    if variable == "UV_INDEX_URL":
        monkeypatch.delenv("UV_DEFAULT_INDEX")
    fetch(tmp_path)


def test_folders_of_links(index, tmp_path, monkeypatch):
    """A folder, a page and a file: index, without asking the index."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / FILE).write_bytes(CONTENT)
    (tmp_path / "simple" / "some-package").mkdir(parents=True)
    page = tmp_path / "simple" / "some-package" / "index.html"
    page.write_text(f'<a href="../../wheels/{FILE}">x</a>')
    (tmp_path / "to").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for links in (tmp_path / "wheels", page.as_uri(), (tmp_path / "wheels" / FILE).as_uri()):
        monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'to'} {links}")
        fetch(tmp_path / "to")
        (tmp_path / "to" / FILE).unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    fetch(tmp_path / "to")
    assert not index.asked


def test_user_and_password_stay_with_their_host(index, tmp_path, monkeypatch):
    index.login = "me:p@ss"
    index.json("/simple")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:p%40ss@{index.host}/simple")
    fetch(tmp_path)
    index.login = None
    index.html("/simple", url=f"http://localhost:{index.host.split(':')[1]}/files/{FILE}")
    index.asked.clear()
    fetch(tmp_path)
    assert index.asked[0][1] is not None and index.asked[1][1] is None
    index.answers["/simple/some-package/"] = "redirect", f"http://localhost:{index.host.split(':')[1]}/moved/"
    index.answers["/moved/"] = "text/html", b""
    index.asked.clear()
    with pytest.raises(OSError, match="no wheel"):
        fetch(tmp_path)
    assert [login is None for _, login in index.asked] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.answers.clear(), "HTTP Error 404"),
        (lambda i: i.html("/simple", sha="0" * 64), "checksum"),
        (lambda i: i.broken.add(f"/files/{FILE}"), "broke off after|IncompleteRead"),
        (lambda i: i.answers.update({f"/files/{FILE}": ("x/y", CONTENT + b"x")}), "more than the"),
        (lambda i: i.html("/simple", url="../../files/some_package-1.2-py3/../../x-none-any.whl"), "no wheel of"),
        (lambda i: i.answers.update({"/simple/some-package/": ("a/b+json", b"{}")}), "files"),
        (lambda i: i.answers.update({"/simple/some-package/": ("a/b+json", b"{")}), "Expecting"),
        (lambda i: setattr(i, "login", "a:b"), "HTTP Error 401"),
    ],
)
def test_what_is_wrong_is_said(index, tmp_path, monkeypatch, change, message):
    index.html("/simple")
    change(index)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{index.host}/simple")
    with pytest.raises(OSError, match=message) as caught:
        fetch(tmp_path)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_ask(index, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    with pytest.raises(OSError, match="PIP_NO_INDEX"):
        fetch(tmp_path)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(OSError, match="refused"):
        fetch(tmp_path)
    broken = tmp_path / "pip.conf"
    broken.write_text("index-url\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(broken))
    with pytest.raises(OSError, match="configuration cannot be read") as caught:
        fetch(tmp_path)
    assert "\n" not in str(caught.value)
