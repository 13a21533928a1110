"""`dyn.warm_up`: what it says and refuses, and what it does where things go wrong.

Where something has to be compiled it is the forward pass of one operator, in a process and a cache folder of
its own: the tests rely on no kernel's name, only on its having two of them.
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _processes import TESTS, with_fork
from conftest import backend_params

import dynarray as dyn
from autodiff import Tape, Variable
from autodiff import functions as F
from dynarray import __main__ as command
from dynarray import _info

pytestmark = pytest.mark.timeout(900)

OPERATOR = "sample_points"
TYPICAL = {
    name: import_module(f"dynarray.typical.{operator.stem}").CALLS[name]
    for name, operator in dyn.OPERATORS.items()
}
SCRIPT = """
import json, logging, os, signal, sys, threading, time
import numpy as np
import dynarray as dyn

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
x = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
points = np.full((1, 2, 2, 3, 3), 1.25, np.float32)


def right(value):
    with dyn.use_backend("reference"):
        return bool(np.allclose(value, dyn.sample_points(x, points)))


def report(done):
    assert right(dyn.sample_points(x, points))
    print(json.dumps([[each.name for each in done.compiled], [each.kept for each in done.compiled]]))
"""
WARM = 'report(dyn.warm_up(["sample_points"], backward=False))'

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked for in /proc")


def start(script: str, cache: Path, **variables: str) -> subprocess.Popen[str]:
    """A process that runs the script."""
    environment = {**os.environ, "DYNARRAY_CACHE_DIR": str(cache), "PYTHONPATH": str(TESTS.parent)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SCRIPT + script], env=environment | variables, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[list[str], list[bool], list[str]]:
    """What was compiled, whether it was kept, and the lines of the log; the process must have ended well."""
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    names, kept = json.loads(out)
    return names, kept, err.splitlines()


def contents(cache: Path) -> list[str]:
    """The kinds of files in a cache."""
    return sorted({path.suffix for path in cache.rglob("*") if path.is_file()})


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether there is still such a process, other than in name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- what it says


def test_what_it_is_asked_for_must_exist() -> None:
    with pytest.raises(ValueError, match=r"^warm_up: there is no operator 'dff'; there are .*\bddf\b"):
        dyn.warm_up(["ddf", "dff"])
    message = r"^warm_up: dtypes: the cpu backend takes float32, float64, got 'float16'$"
    with pytest.raises(ValueError, match=message):
        dyn.warm_up(["ddf"], ["float32", "float16"])
    with pytest.raises(TypeError, match=r"^warm_up: backward must be a bool, got 1$"):
        dyn.warm_up(["ddf"], backward=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^warm_up: operators must be names, got \[<function"):
        dyn.warm_up([dyn.ddf])  # type: ignore[list-item]


def test_a_backend_must_be_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_info, "backend_problem", lambda name: f"no {name} on the moon")
    with (
        dyn.use_backend("cuda"),
        pytest.raises(RuntimeError, match=r"the cuda backend .*: no cuda on the moon$"),
    ):
        dyn.warm_up(["ddf"])


def test_the_reference_needs_nothing() -> None:
    with dyn.use_backend("reference"):
        done = dyn.warm_up(dtypes=["complex64"])
    assert (done.backend, done.dtypes, done.compiled, done.processes) == ("reference", ("complex64",), (), 1)
    assert done.operators == tuple(dyn.OPERATORS)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command.main(["warm-up", "compose_atoms", "ddf", "--dtype", "float64", "--backend", "reference"]) == 0
    )
    told = "2 operators for float64 on backend 'reference': 0 compilations in "
    assert capsys.readouterr().out.startswith(told)
    assert command.main(["warm-up", "dff"]) == 1
    assert "dynarray: warm_up: there is no operator 'dff'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["warm-up", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in dyn.OPERATORS)


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_calls_give_and_leave_out_each_array(name: str) -> None:
    """And they are valid; that they go every way is what tests/test_warm_up_coverage.py is for."""
    operator = dyn.OPERATORS[name]
    for array in operator.optional:
        assert {array in call.shapes for call in TYPICAL[name]} == {True, False}, array
    for call in TYPICAL[name]:
        arrays = tuple(np.full(call.shapes[a], 0.5) if a in call.shapes else None for a in operator.arrays)
        with dyn.use_backend("reference"):
            assert np.isfinite(operator(arrays, **call.params)).all()


# ---- what it compiles


@pytest.mark.slow
def test_each_compilation_is_one_line_and_the_next_process_has_none(tmp_path: Path) -> None:
    names, kept, log = finish(start(WARM, tmp_path))
    assert len(names) == len(set(names)) > 1 and all(kept)
    assert sorted(line.rpartition(" in ")[0] for line in log) == sorted(f"INFO compiled {n}" for n in names)
    assert contents(tmp_path) == [".code"]
    assert finish(start(WARM, tmp_path)) == ([], [], [])


@pytest.mark.slow
def test_eight_processes_at_once_compile_each_kernel_once(tmp_path: Path) -> None:
    alone = finish(start(WARM, tmp_path / "alone"))[0]
    # Each without helpers, or they would be sixteen.
    started = [start(WARM, tmp_path / "shared", NUMBA_NUM_THREADS="1") for _ in range(8)]
    together = [finish(process) for process in started]
    assert sorted(name for names, *_ in together for name in names) == sorted(alone)
    assert contents(tmp_path / "shared") == [".code"]


@pytest.mark.slow
@linux
def test_it_can_be_killed_and_its_helpers_end_with_it(tmp_path: Path) -> None:
    process = start(WARM, tmp_path, NUMBA_NUM_THREADS="2")
    assert process.stderr is not None
    process.stderr.readline()  # the first kernel is done
    helpers = children(process.pid)
    process.kill()
    process.communicate()
    patience = time.monotonic() + 200
    while any(map(runs, helpers)):
        assert time.monotonic() < patience
        time.sleep(0.05)
    kept = finish(start(WARM, tmp_path))[1]
    assert all(kept) and contents(tmp_path) == [".code"]
    assert finish(start(WARM, tmp_path))[0] == []


@pytest.mark.slow
def test_an_interrupt_ends_it_and_its_helpers(tmp_path: Path) -> None:
    script = """
def strike(*_):
    raise KeyboardInterrupt

class Strike(logging.Handler):
    def emit(self, record):
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # in the middle of the next one

signal.signal(signal.SIGALRM, strike)
logging.getLogger("dynarray").addHandler(Strike())
try:
    dyn.warm_up(["sample_points", "dynamic_conv1d"])
except KeyboardInterrupt:
    left = os.path.exists("/proc/self/task") and open(f"/proc/self/task/{os.getpid()}/children").read()
    logging.getLogger("dynarray").handlers.clear()
    assert not left, left
    report(dyn.warm_up(["sample_points"], backward=False))
"""
    finish(start(script, tmp_path, NUMBA_NUM_THREADS="2"))
    assert contents(tmp_path) == [".code"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no folder", "full disk"])
def test_where_nothing_can_be_kept_it_compiles_all_the_same(how: str, tmp_path: Path) -> None:
    cache, script = tmp_path / "cache", WARM
    if how == "no folder":
        cache.write_text("")
    else:
        limit = (
            f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))\n"
        )
        script = limit + WARM
    names, kept, log = finish(start(script, cache, NUMBA_NUM_THREADS="2"))
    assert names and not any(kept)
    if how == "full disk":
        assert contents(cache) == [] and any("could not be kept" in line for line in log)


@pytest.mark.slow
def test_the_command_fails_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "dynarray", "warm-up", OPERATOR, "--no-backward"],
        env={**os.environ, "DYNARRAY_CACHE_DIR": str(tmp_path / "file")},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "could not be kept on disk" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 operators for float32 on backend 'cpu': ")


def test_it_compiles_nothing_where_numba_must_not(tmp_path: Path) -> None:
    names, _, log = finish(start(WARM, tmp_path, NUMBA_DISABLE_JIT="1"))
    assert names == [] and len(log) == 1 and "NUMBA_DISABLE_JIT" in log[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["dyn.set_num_threads(1)", "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"]
)
def test_with_one_core_it_compiles_alone(how: str, tmp_path: Path) -> None:
    if "affinity" in how and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to a core")
    asked = "dyn.warm_up(['sample_points'], backward=False)"
    script = f"{how}\ndone = {asked}\nassert done.processes == 1\nreport(done)"
    names, _, _ = finish(start(script, tmp_path))
    assert len(names) > 1


@pytest.mark.slow
@with_fork
def test_a_fork_in_the_middle(tmp_path: Path) -> None:
    """The child has neither the helpers nor the thread that waits for them."""
    script = """
first = threading.Event()
class First(logging.Handler):
    def emit(self, record):
        first.set()

logging.getLogger("dynarray").addHandler(First())
results = []
worker = threading.Thread(target=lambda: results.append(dyn.warm_up(["sample_points"])))
worker.start()
first.wait()
child = os.fork()
if not child:
    signal.alarm(250)
    done = dyn.warm_up(["sample_points"])
    os._exit(0 if right(dyn.sample_points(x, points)) else 1)
assert os.waitpid(child, 0)[1] == 0
worker.join()
report(results[0])
"""
    finish(start(script, tmp_path, NUMBA_NUM_THREADS="2"))
    assert contents(tmp_path) == [".code"]


def test_on_a_tape_and_in_threads_it_is_as_anywhere() -> None:
    x, points = np.ones((1, 2, 4, 4)), np.full((1, 2, 2, 3, 3), 1.5)
    variable, results = Variable(x), []

    def work() -> None:
        results.append(dyn.warm_up([OPERATOR], ["float64"]))

    with Tape() as tape:
        work()
        loss = F.sum(F.sample_points(variable, points))
        work()
    assert tape.gradient(loss, variable).sum() == pytest.approx(2 * 18)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 5 and all(done.compiled == () for done in results[1:2])


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("host"), indirect=True)
def test_the_host_builds_every_program_of_a_family(backend: Any, tmp_path: Path) -> None:
    script = """
from _calls import draw_case
from _contract import make_call
from rawkernels import compilations
with dyn.use_backend("host"):
    done = dyn.warm_up(["sample_points", "deform_conv1d"])
    rng = np.random.default_rng(0)
    with compilations.followed(compilations.Refusing()):
        for name in done.operators:
            operator = dyn.OPERATORS[name]
            for seed in range(40):
                case = draw_case(operator, lambda choices: choices[int(rng.integers(len(choices)))])
                call = make_call(operator, case, seed).astype("float32")
                output, saved = operator.run(call.arrays, call.params)
                operator.gradients(call.grad_output, saved, (True,) * len(call.arrays))
print(json.dumps([[each.name for each in done.compiled], [each.kept for each in done.compiled]]))
"""
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    names, kept, _ = finish(start(script, tmp_path, PYTHONPATH=path))
    assert len(names) > 1 and all(kept) and contents(tmp_path) == [".so"]
    assert finish(start(script, tmp_path, PYTHONPATH=path))[0] == []
