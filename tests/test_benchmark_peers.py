"""The peers in PyTorch compute what ours do, and none is timed that does not."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

import dynarray as dyn
from benchmarks.cases import CASES
from benchmarks.cases.case import Buffers
from benchmarks.harness.drawn import DrawnOptions

pytest.importorskip("torch", reason="PyTorch is not installed (extra: bench)")

import torch

from benchmarks.peers import compare
from benchmarks.peers.windows import Cannot

# Tiny ones of both; those drawn have steps, groups, and what else an operator takes.
DRAWN = DrawnOptions("cpu", 1, quick=True, number=4).cases()
COMPARED = [
    *(case.small for case in CASES if case.peers and case.small),
    *(case for case in DRAWN if case.peers),
]
each_case = pytest.mark.parametrize("tiny", COMPARED, ids=lambda case: case.title)


def ours(tiny):
    """Buffers of a tiny case, and the output and the gradients that the reference gives."""
    rng = np.random.default_rng(0)
    buffers = Buffers(tiny.arrays(rng), tiny.grad_output(rng))
    operator = dyn.OPERATORS[tiny.operator]
    with dyn.use_backend("reference"):
        output, saved = operator.run(buffers.arrays, tiny.params)
        gradients = operator.gradients(buffers.grad_output, saved, (True,) * len(buffers.arrays))
    return buffers, (output, *gradients)


@each_case
def test_peers_agree_with_ours_on_tiny_arrays(tiny):
    buffers, expected = ours(tiny)
    module, agreed = import_module(tiny.peers), 0
    loosely = tiny.operator in getattr(module, "ROUNDING", ())
    factor = np.float32(1.01 if loosely else 1.001)
    for name, function in module.FORMULATIONS[tiny.operator](**tiny.params).items():
        calls = compare._calls(function, [compare._tensors(buffers)], compiled=False)
        try:
            forward, both = calls["forward"](0), calls["forward_backward"](0)
        except (ImportError, Cannot):  # torchvision is missing; a form that is not for this call
            continue
        agreed += 1
        compare._compare(name, forward, expected, loosely=loosely)
        compare._compare(name, both, expected, loosely=loosely)
        off = (*expected[:2], expected[2] * factor, *expected[3:])
        with pytest.raises(compare.Mismatch, match="gradient 1"):
            compare._compare(name, both, off, loosely=loosely)
    assert agreed >= 2


def formulations(**milliseconds):
    """Peers that need no PyTorch: each sums its array after telling the clock how long it takes."""
    log = []

    def formulation(name):
        def function(x):
            log.append(name)
            clock.last = milliseconds[name]
            return x * 2 if name != "wrong" else x * 3

        return function

    def times(call, first, count):
        return [(call(index), clock.last)[1] for index in range(first, first + count)]

    clock = SimpleNamespace(times=times, last=0.0)
    return clock, {name: formulation(name) for name in milliseconds}, log


def prepared(monkeypatch, kinds=("eager",), **milliseconds):
    clock, table, log = formulations(**milliseconds)
    monkeypatch.setattr(compare, "KINDS", kinds)
    monkeypatch.setattr(
        compare, "import_module", lambda name: SimpleNamespace(FORMULATIONS={"op": lambda: table})
    )
    case = SimpleNamespace(peers="some", operator="op", params={}, title="a case")
    x = np.ones(3, np.float32)
    problems = []
    peers = compare.prepare(case, [Buffers((x,), x)], (x * 2, x * 2), 1, clock, problems.append)
    return {peer.formulation: peer for peer in peers}, problems, log


def test_a_formulation_far_behind_is_looked_at_once(monkeypatch):
    peers, problems, log = prepared(monkeypatch, good=1.0, fair=2.9, poor=3.1, endless=6000.0)
    assert not problems
    contends = {name: peer.contends for name, peer in peers.items()}
    both = {"forward", "forward_backward"}
    assert contends == {"good": both, "fair": both, "poor": set(), "endless": set()}
    # The poor one has a time for both passes, the endless one a single call.
    assert peers["poor"].looks == {"forward": 3.1, "forward_backward": 3.1}
    assert peers["endless"].looks == {"forward": 6000.0}
    assert log.count("poor") == 2 * 4 and log.count("endless") == 1


def test_a_formulation_that_is_wrong_or_broken_is_reported_and_left_out(monkeypatch):
    peers, problems, _ = prepared(monkeypatch, good=1.0, wrong=0.1)
    assert list(peers) == ["good"] and peers["good"].contends == {"forward", "forward_backward"}
    assert len(problems) == 1 and problems[0].startswith("eager wrong: Mismatch: a case: eager wrong: output")


def test_compiling_has_an_end(monkeypatch):
    def stuck(function):
        def compiled(*tensors):
            while True:
                pass

        return compiled

    monkeypatch.setattr(compare, "_compile", stuck)
    monkeypatch.setattr(compare, "COMPILE_S", dict.fromkeys(compare.PASSES, 0.2))
    peers, problems, _ = prepared(monkeypatch, kinds=("eager", "compiled"), good=1.0, fair=1.0)
    assert {peer.kind for peer in peers.values()} == {"eager"}
    late = "forward not compiled within 0 s for this case"
    assert problems == [f"compiled good: {late}", f"compiled fair: {late}"]


def test_what_differs_in_place_alone_is_compiled_once():
    assert compare._out_of_place("shifts, in place") == "shifts"
    assert compare._out_of_place("shifts in place, 1x1") == "shifts, 1x1"
    assert compare._out_of_place("shifts") is None


def test_terms_that_cancel_by_chance_are_no_mismatch():
    output, gradient = np.ones(10_000, np.float32), np.ones(1, np.float32)  # a sum, usually of about 100
    off = torch.ones(1) + 1e-3
    compare._compare("a sum", (torch.ones(10_000), off), (output, gradient))
    with pytest.raises(compare.Mismatch, match=r"gradient 0 differs from ours by 5\.0e-05"):
        compare._compare("a sum", (torch.ones(10_000), off + 4e-3), (output, gradient))
    with pytest.raises(compare.Mismatch, match="output differs"):
        compare._compare("an output", (torch.ones(10_000) + 1e-3, off), (output, gradient))


def test_few_elements_may_lie_on_the_other_side_of_a_border():
    ours_, theirs = np.ones(5000, np.float32), torch.ones(5000)
    theirs[:10] = 3
    compare._compare("points", (theirs,), (ours_,), loosely=True)
    for wrong, loosely in ((theirs, False), (torch.ones(5000) * 1.002, True)):
        with pytest.raises(compare.Mismatch):
            compare._compare("points", (wrong,), (ours_,), loosely=loosely)


def test_what_a_formulation_cannot_do_is_told_once_and_not_compiled(monkeypatch):
    clock, table, _ = formulations(good=1.0, odd=1.0)

    def odd(x):
        raise Cannot("even numbers alone")

    monkeypatch.setattr(compare, "_compile", lambda function: function)
    module = SimpleNamespace(FORMULATIONS={"op": lambda: table | {"odd": odd}})
    monkeypatch.setattr(compare, "import_module", lambda name: module)
    case = SimpleNamespace(peers="some", operator="op", params={}, title="a case")
    x, problems = np.ones(3, np.float32), []
    arguments = ([Buffers((x,), x)], (x * 2, x * 2), 1, clock, problems.append)
    peers = compare.prepare(case, *arguments, compile_s=5.0)
    assert [peer.name for peer in peers] == ["eager good", "compiled good"]
    assert problems == ["eager odd: even numbers alone"]
    # Without time for compiling there is nothing to say of it.
    assert [peer.name for peer in compare.prepare(case, *arguments, compile_s=0.0)] == ["eager good"]


def test_what_is_best_eager_is_compiled_first_without_adding_up_in_place(monkeypatch):
    names = {"unfold": 2.0, "shifts": 3.0, "shifts, in place": 1.0, "views": 2.5}
    clock, table, log = formulations(**names)
    monkeypatch.setattr(compare, "_compile", lambda function: function)
    module = SimpleNamespace(FORMULATIONS={"op": lambda: table})
    monkeypatch.setattr(compare, "import_module", lambda name: module)
    case = SimpleNamespace(peers="some", operator="op", params={}, title="a case")
    x = np.ones(3, np.float32)
    compare.prepare(case, [Buffers((x,), x)], (x * 2, x * 2), 1, clock, print, compile_s=5.0)
    # Two passes of four eager calls each come first.
    assert list(dict.fromkeys(log[2 * 4 * len(names) :])) == ["shifts", "unfold", "views"]
