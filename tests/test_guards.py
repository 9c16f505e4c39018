"""Guard pages notice what they are for: one byte less in any buffer ends the process."""

import signal
import subprocess
import sys
from pathlib import Path

import guards
import pytest
import tiny_llama
from sessions import session

pytestmark = pytest.mark.skipif(not guards.HERE, reason="no mprotect")
HERE = Path(__file__).parent
START = f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]; import ctypes, guards\n"


def ended(code: str) -> int:
    """Exit code of a process that runs this."""
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.parametrize("side", guards.SIDES)
def test_bytes_around_a_block(side):
    """A block can be written as a whole; the bytes beside it on its own side, and pages on both, cannot be read."""
    head = f"with guards.on({side!r}): x = guards.block(5000); x[:] = 1; at = x.ctypes.data\n"
    assert ended(head + "assert ctypes.string_at(at, 5000) == b'\\1' * 5000") == 0
    for far in (5000, -3193) if side == "end" else (-1, 8192):  # 8192 bytes are two pages
        assert ended(head + f"ctypes.string_at(at + {far}, 1)") == -signal.SIGSEGV


# What is made one byte, or one row, shorter.
SHORTER = {
    "nothing": "",
    "panels": "from ikpy_llm.engine.step import weights as w; f = w.weight_bytes; w.weight_bytes = lambda t: f(t) - 1",
    "keys": (
        "from ikpy_llm.engine.cache import kv_cache as k; f = k.Memory; k.Memory = lambda n, **more: f(n - 1, **more)"
    ),
    "values": "f = guards.block; guards.block = lambda n, fill=0: f(n - 1 if n in sizes else n, fill)",
    "tensors": "f = guards.copy; guards.copy = lambda data: f(data[:-1])",
    "rotations": (
        "from ikpy_llm.engine.graph import rope as r; f = r.table; r.table = lambda *a: guards.copy(f(*a)[:-1])"
    ),
    "logits": (
        "import ikpy_llm.engine.step.session as s; f = s.np.empty; s.np.empty = lambda a, b: f((a[0], a[1] - 1), b)"
    ),
}
RUN = """
from sessions import session
with guards.on("end"):
    sizes = {{256 * 4 * 96}}  # the product of ffn_gate, of a whole step
    {change}
    with session({path!r}, n_ctx=256, threads=1, check=False, no_fusion="all", repack={repack}) as s:
        s.eval(list(range(64)) * 4)
"""


@pytest.mark.parametrize("repack", [True, False])
@pytest.mark.parametrize("what", SHORTER)
def test_one_byte_less_ends_the_process(folder, what, repack):
    path = str(tiny_llama.write(folder / "m.gguf", ("F32",)))
    code = ended(RUN.format(change=SHORTER[what], path=path, repack=repack))
    assert code == (0 if what == "nothing" or (what == "panels" and not repack) else -signal.SIGSEGV)


def test_a_model_stays_on_its_pages(folder):
    """Programs that are made when the block has ended use the panels that were packed in it, and the other way."""
    path, tokens = tiny_llama.write(folder / "m.gguf", ("Q8_0",)), [1, 2, 3]
    logits = []
    for first, then in ("", ""), ("end", ""), ("", "end"), ("start", "end"):
        with guards.on(first):
            model = session(path, n_ctx=256)
        with guards.on(then), model:
            logits.append(model.eval(tokens, all_logits=True))
    assert logits[0].any() and all((x == logits[0]).all() for x in logits)
