"""The tape where Numba compiles nothing, and where another thread imports it while a process forks."""

from pathlib import Path

import numpy as np
import pytest
from _processes import output_of, with_fork

PREAMBLE = """
import logging, os, signal, sys, threading, time, warnings
import numpy as np
from autodiff import Tape, Variable, functions as F

logging.getLogger("dynarray").addHandler(logging.NullHandler())
rng = np.random.default_rng(0)
arrays = [rng.standard_normal(shape) for shape in ((2, 4, 30, 40), (2, 2, 3, 3, 30, 40), (5, 4, 3, 3))]
"""

NETWORK = """
def gradients():
    x, weight, kernel = variables = [Variable(array) for array in arrays]
    with Tape() as tape:
        loss = F.sum(F.square(F.conv2d(F.local_filter2d(x, weight), kernel, padding=1)))
    return tape.gradient(loss, variables)
"""


def test_gradients_are_the_same_where_nothing_is_compiled(tmp_path: Path) -> None:
    script = """
warnings.simplefilter("error")
np.savez(sys.argv[1], *gradients())
"""
    results = []
    for disabled in "01":
        path = tmp_path / f"{disabled}.npz"
        output_of(PREAMBLE + NETWORK + script, str(path), NUMBA_DISABLE_JIT=disabled)
        with np.load(path) as file:
            results.append([file[name] for name in file.files])
    for compiled, defined in zip(*results, strict=True):
        assert not np.array_equal(compiled, defined), "sums in another order, or kernels ran both times"
        np.testing.assert_allclose(compiled, defined, rtol=1e-10, atol=1e-10 * abs(defined).max())


def test_overwriting_is_seen_where_nothing_is_compiled() -> None:
    script = """
warnings.simplefilter("error")
x = Variable(np.ones(100_003))
with Tape() as tape:
    loss = F.sum(x * x)
x.data[[5, 90_000]] *= -1
try:
    tape.gradient(loss, x)
except RuntimeError as error:
    print("overwritten" in str(error))
"""
    assert output_of(PREAMBLE + script, NUMBA_DISABLE_JIT="1") == "True"


@with_fork
@pytest.mark.parametrize("first", ["F.conv2d(np.ones((1, 2, 5, 5)), np.ones((2, 2, 3, 3)))", "gradients()"])
def test_a_fork_while_another_thread_imports_numba(first: str) -> None:
    """The child would wait for the end of that import, which nobody is there to reach."""
    script = f"""
def work():
    {first}
other = threading.Thread(target=work)
other.start()
while "numba" not in sys.modules:
    time.sleep(0.001)
child = os.fork()
if not child:
    signal.alarm(100)
    work()
    os._exit(0)
print(os.waitpid(child, 0)[1], other.join())
"""
    assert output_of(PREAMBLE + NETWORK + script) == "0 None"
