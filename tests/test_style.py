"""The shape of the code base: who may import whom, file lengths, no path of one machine, a light start."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ikpy_llm"
# Upper layers first; a file imports from its own layer and from those after it.
ENGINE = ("engine.measure", "engine.step", "engine.program", "engine.cache", "engine.graph", "engine.file", "engine")
LAYERS = ("cli", "", "models", *ENGINE, "sampling", "text", "kernels", "kernels.simd")
EVERYWHERE = (
    "errors",
    "version",
    "arguments",
    "files",
    "leftovers",
    "forks",
    "system",
)  # leaves, which import no others but leaves
MAX_LINES = 450
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [
    p
    for folder in ("ikpy_llm", "tests", "benchmarks", "docs", ".ci")
    for p in (ROOT / folder).rglob("*")
    if p.is_file() and p.suffix in (".py", ".md", ".toml", "") and "__pycache__" not in p.parts
] + [ROOT / "README.md", ROOT / "pyproject.toml"]


def module_of(file: Path) -> str:
    """Dotted name inside the package: ikpy_llm/kernels/compiler/jit.py is "kernels.jit"."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    """Index into LAYERS; files directly in the package (the Python API) are the layer ""."""
    return max(i for i, name in enumerate(LAYERS) if not name or module == name or module.startswith(name + "."))


def imports_of(file: Path) -> set[str]:
    """Modules inside the package that a file imports, at whatever depth of the code."""
    found = set()
    package = ("ikpy_llm." + module_of(file)).rstrip(".").split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            # `from package import name`: name may be a module of its own.
            for alias in node.names:
                file_of = ROOT / (source + "." + alias.name).replace(".", "/")
                is_module = file_of.with_suffix(".py").is_file() or file_of.is_dir()
                found.add(source + "." + alias.name if is_module else source)
    return {name.removeprefix("ikpy_llm").removeprefix(".") for name in found if name.split(".")[0] == "ikpy_llm"}


@pytest.mark.parametrize("file", SOURCES, ids=module_of)
def test_imports_point_one_way(file):
    own = layer_of(module_of(file))
    # `ikpy_llm` itself joins models and engine; its `__main__` starts the commands.
    wrong = {
        name
        for name in imports_of(file)
        if layer_of(name) < own and name not in EVERYWHERE and not (own == layer_of("") and file.stem == "__main__")
    }
    assert not wrong, f"{module_of(file)} imports {', '.join(sorted(wrong))}, which is a layer above it"


def test_leaves_import_only_leaves():
    assert not {name for leaf in EVERYWHERE for name in imports_of(PACKAGE / f"{leaf}.py")} - {*EVERYWHERE}
    assert not any(imports_of(PACKAGE / f"{name}.py") for name in ("errors", "version"))


@pytest.mark.parametrize("folder", ["ikpy_llm", "tests", "benchmarks"])
def test_files_are_short(folder):
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / folder).rglob("*.py")}
    assert not {p.relative_to(ROOT).as_posix(): n for p, n in lengths.items() if n > MAX_LINES}


@pytest.mark.parametrize("file", SOURCES, ids=module_of)
def test_files_say_what_they_are_for(file):
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), "a file opens with one sentence of purpose"


def test_no_path_of_one_machine():
    machine_path = re.compile(r"(?<![\w.~*])/(?:root|work|home|Users)/\w|(?<![\w.])/tmp/\w")
    here = Path(__file__).resolve()
    found = [
        f"{file.relative_to(ROOT)}:{i}"
        for file in TEXTS
        if file.resolve() != here
        for i, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if machine_path.search(line)
    ]
    assert not found


def test_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["ruff"]["line-length"] == 120
    assert project["project"]["name"] == "ikpy-llm"
    commands = {p.stem.replace("_", "-") for p in (PACKAGE / "cli" / "commands").glob("[a-z]*.py")}
    scripts = {name.removeprefix("ikpy-") for name in project["project"]["scripts"]} - {"ikpy"}
    assert scripts == commands, "a script without a command file, or a command without its script"


HEAVY = ("numba", "gguf", "rich", "jinja2", "huggingface_hub", "matplotlib", "requests")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["bench", "--help"], ["cache"]], ids=" ".join)
def test_commands_start_light(words, tmp_path):
    code = (
        "import sys\nfrom ikpy_llm.cli import main\n"
        "try: main(sys.argv[1:], 'ikpy')\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted(m for m in {HEAVY + ('numpy', 'llvmlite')!r} if m in sys.modules))"
    )
    env = {"IKPY_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["HEAVY []"], done.stdout[-300:] + done.stderr
