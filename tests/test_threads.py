"""The thread pool, as a process of a user meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from llmcore import _core, ops

DIGEST = """
import hashlib, numpy as np
from llmcore import _core, gradients, ops
rng = np.random.default_rng(0)
a, b = rng.standard_normal((300, 600)), rng.standard_normal((600, 500))
q, k, v = (rng.standard_normal((2, h, 1600, 40)) for h in (6, 2, 2))
few = q[..., :200, :], k[..., :200, :], v[..., :200, :]
digest = hashlib.sha256()
rows = ops.matmul(a, b), ops.matmul(a[:1], b), ops.softmax(a), ops.layer_norm(a), ops.gelu(a), ops.rope(a)
for out in (*rows, ops.attention(*few, causal=True), ops.attention(q[..., -1:, :], k, v, causal=True)):
    digest.update(out.tobytes())
for outs in (
    gradients.matmul(a, b, rng.standard_normal((300, 500))),
    gradients.matmul(a, b, rng.standard_normal((300, 500)), precision="bfloat16"),
    gradients.attention(*few, few[0], causal=True),
    gradients.layer_norm(a, None, a),
    gradients.cross_entropy(a, np.arange(300))[1:],
    (gradients.embedding(np.arange(300) % 7, a, 7), gradients.activation("gelu", a, a)),
):
    for out in outs:
        digest.update(out.tobytes())
print(_core.isa(), _core.thread_count(), digest.hexdigest())
"""


def run(program: str = DIGEST, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bits_do_not_depend_on_threads_or_instruction_set():
    digests = set()
    for threads in ("1", "2", "4"):
        for isa in _core.available_isas():
            done = run(LLMCORE_ISA=isa, LLMCORE_THREADS=threads)
            found_isa, found_threads, digest = done.stdout.split()
            assert (found_isa, found_threads) == (isa, threads)
            digests.add(digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("LLMCORE_ISA", "sse9"), ("LLMCORE_ISA", ""), ("LLMCORE_THREADS", "0"), ("LLMCORE_THREADS", "many")],
)
def test_a_bad_setting_is_an_error_at_import(name, value):
    done = run(**{name: value})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError") and name in last and repr(value).replace("'", '"') in last, (
        done.stderr
    )


def thread_count(prelude: str) -> int:
    """Of a process that first does what `prelude` says to itself."""
    environment = {k: v for k, v in os.environ.items() if k != "LLMCORE_THREADS"}
    program = f"{prelude}\nfrom llmcore import _core\nprint(_core.thread_count())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def test_affinity_sizes_the_pool():
    if not hasattr(os, "sched_setaffinity"):
        pytest.xfail("this system has no affinity masks")
    assert thread_count("import os; os.sched_setaffinity(0, {0})") == 1


@pytest.fixture
def one_processor_group():
    """A control group whose quota is one processor, of either version; its processes are gone by the end."""
    name = f"llmcore-test-{os.getpid()}"
    for root, quota in [
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}),
        ("/sys/fs/cgroup", {"cpu.max": "100000 100000"}),
    ]:
        group = Path(root, name)
        if not Path(root, "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for file, value in quota.items():
                (group / file).write_text(value)
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.xfail("no control group can be made here")


def test_a_quota_sizes_the_pool(one_processor_group):
    tasks = str(one_processor_group / "cgroup.procs")
    assert thread_count(f"import os; open({tasks!r}, 'w').write(str(os.getpid()))") == 1


def work(seed: int) -> bytes:
    x = np.random.default_rng(seed).standard_normal((130, 200))
    return ops.matmul(x, x.T).tobytes() + ops.softmax(x).tobytes()


def test_several_python_threads_compute_at_once():
    expected = [work(i) for i in range(4)]
    found: dict[int, bool] = {}

    def repeat(i: int) -> None:
        found[i] = all(work(i) == expected[i] for _ in range(20))

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes():
    expected = work(7)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            work(1)

    # Forks while another thread keeps the pool's locks busy.
    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                signal.alarm(30)  # A child that hangs is a child that fails.
                os._exit(0 if work(7) == expected else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join(timeout=60)
    assert work(7) == expected
