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
from rawkernels import forks

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
    with forks.held_off():
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


def test_threads_may_fork_at_once_and_in_the_handler_of_a_signal_in_there() -> None:
    """None waits for itself, nor two for each other."""
    script = """
call()
statuses = []
def fork(*signal):
    statuses.append(status_of_child(call))
signal.signal(signal.SIGUSR1, fork)
with forks.held_off():
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


@pytest.mark.parametrize("handler", ["number, frame", "*arguments", "number, *others"])
@pytest.mark.parametrize("lock", ["forks.held_off()", "global_compiler_lock"])
def test_a_handler_that_raises_while_a_fork_waits_is_called_again_behind_it(lock: str, handler: str) -> None:
    """Nothing is left taken, in the child or in the parent, and what the handler raised is not lost."""
    script = f"""
from dynarray.cpu.engine.compile import global_compiler_lock
call()
class Alarm(Exception):
    pass
calls, inside, leave, order = [], threading.Event(), threading.Event(), []
def raise_alarm({handler}):
    calls.append(len(order))
    raise Alarm
signal.signal(signal.SIGUSR1, raise_alarm)
def stay():
    with {lock}:
        inside.set()
        leave.wait()
        order.append("left")
def take():
    with {lock}:
        return call()
def strike():
    while forks._register.acquire(blocking=False):  # until the fork has begun to wait
        forks._register.release()
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGUSR1)
    while not calls:
        time.sleep(0.001)
    leave.set()
worker = threading.Thread(target=stay)
worker.start()
inside.wait()
threading.Thread(target=strike).start()
try:
    if not os.fork():
        signal.alarm(60)
        os._exit(take() != 1)
    time.sleep(60)
except Alarm:
    order.append("alarm")
order.append(os.wait()[1])
worker.join()
others = threading.Thread(target=lambda: order.append(status_of_child(take)))
others.start()
others.join()
print(calls, order)
"""
    assert output_of(CALL + script) == "[0, 1] ['left', 'alarm', 0, 0]"
