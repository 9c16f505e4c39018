"""list the kernels, or show the machine code, LLVM IR or source of one"""

import ast
import dataclasses
import os
import re
import sys
from pathlib import Path

from ikpy_llm.cli.options import Common, flag
from ikpy_llm.errors import IkpyError

# Instructions worth counting: pattern -> what it is.
COUNTED = {
    r"vpdpbusds?": "u8 x s8 dot products (VNNI)",
    r"vpmaddubsw": "u8 x s8 products (AVX2)",
    r"[su]+dot": "int8 dot products (NEON)",
    r"[su]+mmla": "int8 matrix products (i8mm)",
    r"vfn?m(?:add|sub)\w+|fml[as]": "float multiply-adds",
    r"v?gather\w+": "gathers",
    r"v?prefetch\w*|prfm": "prefetches",
}
# Numbers that parameters may be: each of n columns and of t rows is code of its own, of 64 columns 100 KB.
MOST, MOST_OTHERS = {"n": 64, "t": 64, "few": 64}, 4096
SPILL = r"\b(?:[xyz]mm\d+|[qv]\d+)\b.*\((?:%rsp|%rbp)\)|\((?:%rsp|%rbp)\), %[xyz]mm|\b(?:str|ldr)\s+q\d+, \[sp"


@dataclasses.dataclass
class Options(Common):
    """Flags of `ikpy kernels`."""

    action: str = flag("list", choices=("list", "show"), metavar="list|show", help="what to do", env="")
    words: list[str] = flag(
        [],
        metavar="KERNEL [TYPE] [NAME=VALUE]",
        help="kernel (gemv or derive.gemv), its weight type and parameters",
        env="",
    )
    type: str | None = flag(None, "--type", metavar="TYPE", env="", help="weight type, for kernels that have one")
    form: str = flag("asm", "--form", choices=("asm", "ir", "source"), env="", help="what to show")
    asm: bool = flag(False, "--asm", env="", help="assembly, with a count of what matters at the end")
    ir: bool = flag(False, "--ir", env="", help="optimized LLVM IR")
    source: bool = flag(False, "--source", env="", help="the Python function it is made from")
    target: str | None = flag(
        None,
        "--target",
        metavar="NAME",
        env="",
        help="for another CPU: avx512, avx2, neon, generic (default: this one)",
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """A kernel as its source says: name, first line of its docstring, parameters with defaults (None: required)."""

    name: str
    about: str
    params: dict[str, object]
    source: str


def main(options: Options) -> None:
    """Print the list, or one kernel."""
    if options.target:
        os.environ["IKPY_TARGET"] = options.target  # read when the first kernel module is imported
    if options.action == "list":
        for k in kernels():
            if all(word in k.name for word in options.words):
                params = ", ".join(n if v is None else f"{n}={v}" for n, v in k.params.items())
                print(f"{k.name + '(' + params + ')':44} {k.about.partition('. ')[0][:100]}")
        return
    show(options)


def show(options: Options) -> None:
    """Print assembly, IR or source of the kernel that the words name."""
    kernel, given = kernel_of(options)
    form = next((name for name in ("ir", "source", "asm") if getattr(options, name)), options.form)
    if form == "source":
        print(kernel.source)
        return
    from ikpy_llm.kernels.compiler import jit

    if "n" in kernel.params:
        given.setdefault("n", 1)  # columns of a matrix-vector product
    missing = [name for name, default in kernel.params.items() if default is None and name not in given]
    if missing:
        raise IkpyError(f"{kernel.name} needs {', '.join(f'{n}=...' for n in missing)}{hint(missing)}")
    spec, target = jit.Kernel(kernel.name, **given), jit.target.current()
    try:
        text = jit.assembly(spec, form == "ir")
    except IkpyError:
        raise
    except Exception as error:  # a parameter the kernel does not take, a mistake in a declaration
        from ikpy_llm.kernels.compiler.compile_error import one_line

        raise IkpyError(f"{spec}: {one_line(error)}") from None
    sign = "//" if "aarch64" in target.triple else ";" if form == "ir" else "#"
    print(f"{sign} {spec} for {target.title} ({target.cpu})")
    print(text)
    if form == "asm":
        print(*(f"{sign} {line}" for line in counts(text)), sep="\n")


def hint(missing: list[str]) -> str:
    """Where a parameter's values are found."""
    if "type" not in missing:
        return ""
    from ikpy_llm.kernels.quants import names

    return f"; types are {', '.join(names())}"


def kernel_of(options: Options) -> tuple[Found, dict[str, object]]:
    """(kernel, parameters) that the words name, in whatever order."""
    from ikpy_llm.kernels.quants import get, names, table

    known = {k.name: k for k in kernels()}
    given: dict[str, object] = {"type": options.type} if options.type else {}
    found = []
    for word in options.words:
        name, equals, value = word.partition("=")
        matches = [k for k in known if k == word or k.rpartition(".")[2] == word]
        matches = [k for k in matches if k == f"derive.{word}"] or matches  # of equal names the one for every type
        if equals:
            given[name] = _value(name, value)
        elif matches:
            found += matches
        elif word.upper() in {*table.BY_NAME, *table.ALIASES, *names()}:
            given["type"] = word
        else:
            import difflib

            close = difflib.get_close_matches(word, [*known, *(k.rpartition(".")[2] for k in known)], n=1)
            like = f"; did you mean {close[0]}?" if close else "; `ikpy kernels list` shows all"
            raise IkpyError(f"{word} is neither a kernel nor a weight type{like}")
    if len(found) != 1:
        what = f"several kernels: {', '.join(found)}" if found else "no kernel; `ikpy kernels list` shows all"
        raise IkpyError(f"the words name {what}")
    if "type" in given:
        try:
            given["type"] = table.by_name(given["type"]).name
        except KeyError:
            if given["type"].upper() in names():  # a file without a row in the table
                get(given["type"].upper())
            raise IkpyError(f"--type {given['type']}: no such type{hint(['type'])}") from None
    return known[found[0]], given


def _value(name: str, text: str):
    """A parameter from a command line: a number, a switch or a name; IkpyError for a number that is too large."""
    if re.fullmatch(r"-?\d+", text):
        if len(text) > 9 or abs(int(text)) > MOST.get(name, MOST_OTHERS):
            raise IkpyError(f"{name}={text[:20]}: whole numbers up to {MOST.get(name, MOST_OTHERS)} are accepted")
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def kernels() -> list[Found]:
    """Every kernel factory in the package's source: a function that returns one whose last parameters are ith, nth."""
    root = Path(sys.modules["ikpy_llm"].__file__).parent / "kernels"
    out = []
    for file in sorted(
        f for f in root.rglob("*.py") if not {"simd", "quants", "compiler"} & {*f.relative_to(root).parts}
    ):
        text = file.read_text(encoding="utf-8")
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        functions = {n.name: n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}
        for node in functions.values():
            if not node.name.startswith("_") and _is_factory(node, functions):
                name = module if module.rpartition(".")[2] == node.name else f"{module}.{node.name}"
                about = (ast.get_docstring(node) or "").partition("\n")[0]
                out.append(Found(name, about, _params(node), ast.get_source_segment(text, node)))
    return out


def _is_factory(node: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> bool:
    """Does it return a kernel it defines, or what another factory of the file returns?"""

    def is_kernel(n) -> bool:
        return isinstance(n, ast.FunctionDef) and [a.arg for a in n.args.args][-2:] == ["ith", "nth"]

    inner = {n.name for n in ast.walk(node) if n is not node and is_kernel(n)}
    for statement in (n for n in node.body if isinstance(n, ast.Return) and n.value):
        names = {n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)}
        others = [functions[n] for n in names & set(functions) if n != node.name]
        if names & inner or any(_is_factory(other, functions) for other in others):
            return True
    return False


def _params(node: ast.FunctionDef) -> dict[str, object]:
    names = [a.arg for a in node.args.args]
    defaults = [ast.unparse(d) for d in node.args.defaults]
    return dict(zip(names, [None] * (len(names) - len(defaults)) + defaults, strict=True))


def counts(text: str) -> list[str]:
    """What is in the assembly: instructions, products, and vectors that had to go to the stack."""
    lines = [line.strip() for line in text.splitlines()]
    code = [line for line in lines if line and not line.startswith((".", "#", "//")) and not line.endswith(":")]
    out = [f"{len(code)} instructions"]
    for pattern, what in COUNTED.items():
        found = sum(bool(re.match(rf"(?:{{vex}} *\t*)?(?:{pattern})\b", line)) for line in code)
        out += [f"{found} {what}"] if found else []
    return [*out, f"{sum(bool(re.search(SPILL, line)) for line in code)} vectors kept on the stack (spills)"]
