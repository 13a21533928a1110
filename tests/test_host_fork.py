"""Forks while other threads are in the host build: the child can use it, whatever they were doing."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from _processes import output_of, with_fork

pytestmark = [
    with_fork,
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX") or "g++") is None and not os.environ.get("CI"),
        reason="no g++ on the PATH",
    ),
]

CALL = """
import os, signal, sys, threading, time
import numpy as np
import dynarray as dyn
from rawkernels.host import native

def call():
    with dyn.use_backend("host"):
        return dyn.sample_points(np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 1, 1))).item()

def status_of_child(work):
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(work() != 1)
    return os.waitpid(child, 0)[1]
"""


def test_a_fork_waits_for_native_code_of_other_threads() -> None:
    script = """
call()
order, inside, leave = [], threading.Event(), threading.Event()
def stay():
    with native.code():
        inside.set()
        leave.wait()
        order.append("left")
def fork():
    inside.wait()
    order.append(status_of_child(call))
workers = [threading.Thread(target=work) for work in (stay, fork)]
for worker in workers:
    worker.start()
inside.wait()
time.sleep(0.5)
leave.set()
for worker in workers:
    worker.join()
print(order)
"""
    assert output_of(CALL + script) == "['left', 0]"


def test_threads_may_fork_at_once_and_in_the_handler_of_a_signal_inside_native_code() -> None:
    """None waits for itself, nor two for each other."""
    script = """
call()
statuses = []
def fork(*signal):
    statuses.append(status_of_child(call))
signal.signal(signal.SIGUSR1, fork)
with native.code():
    workers = [threading.Thread(target=fork) for _ in range(3)]
    for worker in workers:
        worker.start()
    signal.raise_signal(signal.SIGUSR1)
for worker in workers:
    worker.join()
print(statuses)
"""
    assert output_of(CALL + script) == "[0, 0, 0, 0]"


def test_a_fork_while_another_thread_compiles(tmp_path: Path) -> None:
    """The child compiles for itself: the thread that held the lock of that library is not there."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, time\n"
        "folder = os.path.dirname(__file__)\n"
        "if '--version' not in sys.argv:\n"
        "    open(folder + '/began', 'w').close()\n"
        "    while not os.path.exists(folder + '/go'):\n"
        "        time.sleep(0.01)\n"
        f"os.execvp({os.environ.get('CXX') or 'g++'!r}, ['g++', *sys.argv[1:]])\n"
    )
    compiler.chmod(0o755)
    script = """
folder = os.path.dirname(os.environ["CXX"])
other = threading.Thread(target=call)
other.start()
while not os.path.exists(folder + "/began"):
    time.sleep(0.01)
def work():
    open(folder + "/go", "w").close()
    return call()
print(status_of_child(work), other.join(), call())
"""
    variables = {"CXX": str(compiler), "DYNARRAY_CACHE_DIR": str(tmp_path / "cache")}
    assert output_of(CALL + script, **variables) == "0 None 1.0"
