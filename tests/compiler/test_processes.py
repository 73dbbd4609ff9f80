"""Whole compiled models beside each other: after fork, on several threads, and under Ctrl-C.

Each check runs in a process of its own with a limit on its time: what hangs there fails here.
"""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import Tensor, grad, nn, optim
from tinygrad_rnn.compiler import threads

pytest.importorskip("numba")

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # seconds after which something that should have happened has not
T, N, D, H = 24, 32, 8, 64
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def model(seed=0):
    """Return a model whose loops are worth threads."""
    made = nn.Readout(nn.GRU(D, H, num_layers=2, rng=seed), 3, rng=seed)
    return tinygrad_rnn.compiler.compile(made, threads=2, backend="numba")


def digest(arrays):
    """Return a text that two lists of arrays have in common where they agree to the bit."""
    return hashlib.sha256(b"".join([np.ascontiguousarray(a).tobytes() for a in arrays])).hexdigest()


def batch(seed=0):
    return np.random.default_rng(seed).standard_normal((T, N, D)).astype(np.float32)


def numbers(compiled, seed=0):
    """Return the output of a call and the gradients of all there is, as a text."""
    x = Tensor(batch(seed), requires_grad=True)
    y, state = compiled(x)
    loss = (y * y).sum() + (state * state).sum()
    found = digest([y.data, state.data, *grad(loss, [x, *compiled.parameters()])])
    assert "unrolled" not in compiled.layer.report()
    return found


def trained(seed, steps=4):
    """Return the parameters after some steps of training, as a text."""
    compiled = model(seed)
    step = optim.Adam(compiled.parameters(), lr=0.01)
    for k in range(steps):
        compiled.zero_grad()
        y, _ = compiled(batch(k))
        (y * y).mean().backward()
        step.step()
    return digest([p.data for p in compiled.parameters()])


def threads_that_run():
    """Return how many workers wait beside the thread that calls."""
    return sum(w.is_alive() for w in threads._pool._crew.workers)


def two_threads_meet():
    """Return how many threads take part in a call for two."""
    barrier, seen = threading.Barrier(2, timeout=20), set()

    def task():
        barrier.wait()
        seen.add(threading.get_ident())

    threads.run([task, task], 2)
    return len(seen)


def together(*tasks):
    """Run tasks at the same time, on a thread each; return what they return."""
    found, gate = [None] * len(tasks), threading.Barrier(len(tasks), timeout=LIMIT)

    def go(k):
        gate.wait()
        found[k] = tasks[k]()

    callers = [threading.Thread(target=go, args=(k,), daemon=True) for k in range(len(tasks))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LIMIT)
    assert not any(caller.is_alive() for caller in callers), "a deadlock"
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the environment of processes that share their kernels."""
    folder = tmp_path_factory.getbasetemp() / "kernels"
    return os.environ | {"TINYGRAD_RNN_CACHE": str(folder)}


@pytest.fixture(scope="module")
def script(environment):
    """Return a function that runs a process and gives the lines that it prints."""

    def run(code, *arguments):
        begin = "from tests.compiler.test_processes import *\nimport signal, sys, time\n"
        done = subprocess.run(
            [sys.executable, "-c", begin + code, *arguments],
            env=environment, cwd=ROOT, text=True, capture_output=True, timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    return run


@pytest.fixture(scope="module")
def expected(script):
    """Return what `numbers` gives in a process that does nothing else."""
    (found,) = script("print(numbers(model()))")
    return found


FORK = """
compiled, stop = model(), threading.Event()
if sys.argv[1] != "none":
    print(numbers(compiled))
    assert threads_that_run() == 1
def on_and_on():
    while not stop.is_set():
        numbers(compiled)
other = threading.Thread(target=on_and_on, daemon=True)
if sys.argv[1] == "meanwhile":
    other.start()
for _ in range(int(sys.argv[2])):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(100)
        print("child", numbers(compiled), threads_that_run())
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
if other.is_alive():
    other.join(100)
print(numbers(compiled), threads_that_run())
"""


@forks
@pytest.mark.parametrize("before", ["none", "some"])
def test_a_child_of_fork_computes_the_same_and_ends(script, expected, before):
    out = script(FORK, before, "1")
    first = [expected] if before == "some" else []
    assert out == [*first, f"child {expected} 1", "7", f"{expected} 1"]


@forks
def test_a_child_that_is_forked_while_another_thread_computes(script, expected):
    out = script(FORK, "meanwhile", "5")
    assert out == [expected, *[f"child {expected} 1", "7"] * 5, f"{expected} 1"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing(script, expected, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    out = script(
        "def all_of():\n"
        "    compiled = model()\n"
        "    print(numbers(compiled))\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:\n"
        "        found = pool.map_async(trained, [1, 2, 3, 1])\n"
        "        print(numbers(compiled))\n"
        "        print(found.get(200) == [trained(k) for k in (1, 2, 3, 1)])\n"
        "all_of()\n",
        method,
    )
    assert out == [expected, expected, "True"]


@pytest.mark.parametrize("warm", ["cold", "warm"])
def test_two_threads_train_a_model_each(script, warm):
    out = script(
        "first = [trained(k) for k in (1, 2)] if sys.argv[1] == 'warm' else []\n"
        "for _ in range(3):\n"
        "    print(*together(lambda: trained(1), lambda: trained(2)))\n"
        "    assert threads_that_run() == 1\n"
        "print(*[trained(k) for k in (1, 2)])\n"
        "assert not first or first == [trained(k) for k in (1, 2)]\n",
        warm,
    )
    assert len(out) == 4
    assert len(set(out)) == 1
    one, two = out[0].split()
    assert one != two


@pytest.mark.parametrize("warm", ["cold", "warm"])
def test_one_layer_is_called_by_several_threads(script, expected, warm):
    out = script(
        "compiled = model()\n"
        "alone = [numbers(compiled, k) for k in range(3)] if sys.argv[1] == 'warm' else []\n"
        "found = together(*[lambda k=k: [numbers(compiled, k) for _ in range(5)]\n"
        "                   for k in range(3)])\n"
        "alone = alone or [numbers(compiled, k) for k in range(3)]\n"
        "print(alone[0])\n"
        "print(found == [[k] * 5 for k in alone], len(set(alone)))\n",
        warm,
    )
    assert out == [expected, "True 3"]


CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
compiled = model()
long = tinygrad_rnn.compiler.compile(nn.LSTM(D, 128, rng=0), threads=int(sys.argv[1]))
x = Tensor(np.random.default_rng(0).standard_normal((1000, 64, D)).astype("f4"), requires_grad=True)
long(x[:2])[0].sum().backward()
print(numbers(compiled))
for k in range(5):
    try:
        print("ready", flush=True)
        while True:
            long(x)[0].sum().backward()
    except KeyboardInterrupt:
        print("interrupted", numbers(compiled), two_threads_meet(), flush=True)
print("end")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("number", ["1", "2"])
def test_ctrl_c_ends_a_call_and_the_next_is_right(environment, expected, number):
    code = f"from tests.compiler.test_processes import *\n{CTRL_C}"
    with subprocess.Popen(
        [sys.executable, "-c", code, number],
        env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        watch = threading.Timer(100, process.kill)
        watch.start()
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if lines[-1] == "ready":
                threading.Timer(0.3 + 0.13 * len(lines), process.send_signal, [2]).start()
        error = process.stderr.read()
        watch.cancel()
    assert process.returncode == 0, error
    assert lines == [expected, *["ready", f"interrupted {expected} 2"] * 5, "end"]


BACKWARD = """
from tinygrad_rnn import Parameter
parameters = [Parameter(np.ones(200_000)) for _ in range(20)]
def go():
    sum([(p * 2.0).sum() for p in parameters]).backward()
threading.Thread(target=lambda: [go() for _ in iter(int, 1)], daemon=True).start()
for _ in range(20):
    time.sleep(0.003)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        go()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@forks
def test_a_child_that_is_forked_while_another_thread_adds_gradients(script):
    assert script(BACKWARD) == ["0"] * 20
