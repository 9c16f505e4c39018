"""Working memory: alignment, filling, and how much there is."""

import os

import numpy as np
import pytest

from ikpy_llm.errors import IkpyError
from ikpy_llm.kernels.run import free_memory
from ikpy_llm.kernels.run import memory as pages

MEMINFO = "MemTotal:  32000000 kB\nMemAvailable:   2000 kB\n"


@pytest.mark.parametrize("n_bytes", [1, 4096, 100_000, pages.HUGE, 3 * pages.HUGE + 5])
@pytest.mark.parametrize("huge", [True, False])
def test_aligned_zero_and_as_long_as_asked(n_bytes, huge):
    m = pages.Memory(n_bytes, huge=huge)
    assert len(m.bytes) == n_bytes and not m.bytes.any()
    assert m.address % (pages.HUGE if huge and n_bytes >= pages.HUGE else pages.PAGE) == 0
    m.bytes[-1] = 7


@pytest.mark.parametrize("n_bytes", [1 << 60, 1 << 63, 1 << 70])
def test_more_than_there_can_be(n_bytes):
    with pytest.raises(IkpyError, match="MB of memory are not to be had"):
        pages.Memory(n_bytes)


def test_filled_with_nan():
    m = pages.Memory(64, fill=True)
    assert np.isnan(m.bytes.view(np.float32)).all() and np.isnan(m.bytes.view(np.float16)).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_has_a_copy():
    m = pages.Memory(64)
    child = os.fork()
    if child == 0:
        m.bytes[0] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert m.bytes[0] == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": MEMINFO}, 2000 << 10),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1000000\n",
          "sys/fs/cgroup/a/memory.current": "400000\n"}, 600_000),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1000000\n",
          "sys/fs/cgroup/a/memory.current": "400000\n",
          "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 300000\n"}, 900_000),
        # A container of 8 GB that has read large files often: all their pages can be dropped.
        ({"proc/meminfo": "MemAvailable: 64000000 kB\n", "proc/self/cgroup": "0::/\n",
          "sys/fs/cgroup/memory.max": "8000000000\n", "sys/fs/cgroup/memory.current": "7900000000\n",
          "sys/fs/cgroup/memory.stat": "anon 500000000\nfile 7400000000\nactive_file 7400000000\ninactive_file 0\n"},
         7_500_000_000),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "9:memory:/x\n",
          "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1000000\n",
          "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "900000\n",
          "sys/fs/cgroup/memory/x/memory.stat": "inactive_file 1\nactive_file 2\ntotal_inactive_file 300000\n"
          "total_active_file 500000\n"}, 900_000),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "9:memory:/x\n",
          "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1000000\n",
          "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "900000\n",
          "sys/fs/cgroup/memory/x/memory.stat": "inactive_file 100000\nactive_file 200000\n"}, 400_000),
        # File pages cannot outnumber the bytes in use, though the two numbers are read one after the other.
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000000\n",
          "sys/fs/cgroup/memory.current": "400000\n", "sys/fs/cgroup/memory.stat": "active_file 500000\n"}, 1_000_000),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 2000 << 10),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n",
          "sys/fs/cgroup/a/memory.current": "6000\n"}, 0),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "9:memory:/x\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "300000\n",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n"}, 200_000),
    ],
)  # fmt: skip
def test_what_is_available(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory.available(tmp_path) == expected
