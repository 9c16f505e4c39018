"""The commands. `ikpy run ...` is `ikpy-run ...`; every file in commands/ is one command, imported when it is called.

A command file opens with its one-line description and has `Options` (a dataclass of flags, see options.py) and
`main(options)`.
"""

from __future__ import annotations

from ikpy_llm.cli import interrupt

# isort: split
import contextlib
import os
import sys
from pathlib import Path

from ikpy_llm.cli import console, options
from ikpy_llm.errors import IkpyError, printable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, unused here: they spin for 100 ms at start
COMMANDS = Path(__file__).parent / "commands"
EXIT_ERROR, EXIT_INTERRUPT, EXIT_BROKEN_PIPE = 1, 130, 141  # the last two as a shell counts SIGINT and SIGPIPE


def command_list() -> dict[str, str]:
    """Name -> one-line description of every command, read from the first line of its file."""
    found = {}
    for file in sorted(COMMANDS.glob("[a-z]*.py")):
        with file.open(encoding="utf-8") as source:
            found[file.stem.replace("_", "-")] = source.readline().strip().strip('"')
    return found


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    """Entry point of every script: `ikpy-NAME`, `ikpy NAME` and `NAME` run the command NAME. Returns the exit code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us; a file we open must not take its place
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
    argv = list(sys.argv[1:] if argv is None else argv)
    program = program or Path(sys.argv[0]).stem
    try:
        code = _dispatch(program, argv)
        sys.stdout.flush()
        return code
    except IkpyError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPT
    except ImportError as error:
        if interrupt.came:  # what extension modules, NumPy for one, make of it
            return EXIT_INTERRUPT
        return _failed(f"{error.name or 'a module'} cannot be imported: {_last_line(error)}")
    except MemoryError:
        return _failed("there is not enough memory (a limit such as ulimit -v counts too)")
    except BrokenPipeError:
        # The reader has left; without this Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:  # a full disk under stdout, a file that a flag names
        where = error.filename
        if where is None and isinstance(error, FileNotFoundError):
            where = "the current folder"  # it has been removed: no path is looked up without a name
        return _failed(f"{where}: {error.strerror}" if where else str(error.strerror or error))


def _failed(why: str) -> int:
    """Say what went wrong; the exit code."""
    with contextlib.suppress(OSError):  # of a full disk under stderr
        print(f"error: {printable(why)}", file=sys.stderr)
    return EXIT_ERROR


def _last_line(error: Exception) -> str:
    """The last line of a message that is not empty: NumPy's is a page that ends with the reason."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def script(program: str | None = None) -> None:
    """`main` as the whole process: ends it without taking its objects apart, which would take 60 ms."""
    try:
        interrupt.remember()
        code = main(program=program)
        interrupt.ignore()
    except KeyboardInterrupt:  # when all was done
        code = EXIT_INTERRUPT
    except Exception:
        if not interrupt.came:
            raise
        code = EXIT_INTERRUPT  # what became of it on its way, as in the making of a class
    interrupt.ignore()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _dispatch(program: str, argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        from ikpy_llm.version import VERSION

        print(f"ikpy {VERSION}")
        return 0
    if program.startswith("ikpy-"):
        return _run(program.removeprefix("ikpy-"), argv)
    if program in command_list():  # an alias script, such as sweep-bench
        return _run(program, argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    return _run(argv[0], argv[1:])


def _run(name: str, argv: list[str]) -> int:
    if name not in command_list():
        raise IkpyError(f"unknown command '{name}'; there are: {', '.join(command_list())}")
    import importlib

    command = importlib.import_module(f"ikpy_llm.cli.commands.{name.replace('-', '_')}")
    values = options.parse(command.Options, argv, f"ikpy-{name}", command.__doc__)
    console.setup(verbose=values.verbose, quiet=values.quiet)
    for notice in values.notices:
        console.note(notice)
    return command.main(values) or 0


def _help() -> str:
    lines = [f"  {name:12} {text}" for name, text in command_list().items()]
    return "\n".join(
        [
            "usage: ikpy COMMAND [options]     (`ikpy COMMAND` is the same as `ikpy-COMMAND`)",
            "",
            "commands:",
            *lines,
            "",
            "`ikpy COMMAND --help` lists the options of one command, `ikpy --version` prints the version.",
        ]
    )


interrupt.as_exception()
