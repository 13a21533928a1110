"""The benchmark of the tape runs, and does not time what is wrong."""

import numpy as np
import pytest

from benchmarks import tape


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    tape.main(["--quick", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(tape.CHAINS) + 2
    assert all(" ms" in line for line in lines[1:])
    assert lines[-2].startswith("conv2d (1,8->8,9,9) k3 forward alone")


@pytest.mark.parametrize("chain", tape.CHAINS, ids=lambda chain: chain.__name__)
def test_chains_have_the_length_they_claim(chain) -> None:
    calls = []

    class Counter:
        """Counts what is done to it."""

        def __getattr__(self, name):
            return lambda *others: self._count()

        def _count(self, other=None):
            calls.append(1)
            return self

        __add__ = __sub__ = __mul__ = __neg__ = _count

    chain(Counter(), *[Counter()] * 3)
    assert len(calls) == tape.OPERATIONS


def test_a_wrong_peer_is_not_timed() -> None:
    class Tensor:
        def __init__(self, values):
            self.values = values

        def detach(self):
            return self

        def numpy(self):
            return self.values

    x = np.ones(3, np.float32)
    tape.agree({"tape": lambda: [x], "PyTorch": lambda: [Tensor(x * 1.00001)]})
    with pytest.raises(AssertionError, match="do not compute the same"):
        tape.agree({"tape": lambda: [x], "PyTorch": lambda: [Tensor(x * 1.001)]})
