"""How threads of the pool wait a moment for each other without going to sleep.

A thread that sleeps comes late: on virtual machines as late as a short call takes. Calls often follow each
other closely, so one that has just worked watches for the next one for a while, without the GIL. What it
watches are hints: locks and queues alone decide who does what.
"""

import ctypes
import platform
from time import perf_counter
from typing import Any

from llvmlite import binding
from numba.core.compiler_lock import global_compiler_lock

# Who asks for the GIL while another thread has it is put to sleep. From the offer of a job on the caller has
# it for such a time, until its own kernel begins.
_GRACE = 1e-5  # seconds
_LINE = 8  # numbers of a cache line: each thread writes to its own
_OFFERS, _NOBODY, _FIRST = 0, 1, 2  # lines: of offers, of who is not watched, of the first helper

# Sets a number to 0; waits until another one is no longer what it was, and from then on a little longer.
_SOURCE = """
define void @watch(i64* %own, i64* %other, i64 %was, i64 %turns, i64 %grace) {
  store atomic i64 0, i64* %own release, align 8
  br label %look
look:
  %left = phi i64 [%turns, %0], [%fewer, %rest]
  %before = phi i64 [%was, %0], [%now, %rest]
  %now = load atomic i64, i64* %other acquire, align 8
  %same = icmp eq i64 %now, %before
  %short = icmp slt i64 %left, %grace
  %least = select i1 %short, i64 %left, i64 %grace
  %still = select i1 %same, i64 %left, i64 %least
  %more = icmp sgt i64 %still, 0
  br i1 %more, label %rest, label %end
rest:
  %fewer = sub i64 %still, 1
  call void asm sideeffect "PAUSE", "~{memory}"()
  br label %look
end:
  ret void
}
"""
_PAUSE = {"x86_64": "pause", "amd64": "pause", "aarch64": "yield", "arm64": "yield"}


_made: list[tuple[Any, float]] = []


def _watch_function() -> tuple[Any, float]:
    """The function, and its turns in a second."""
    with global_compiler_lock:
        if not _made:
            _made.append(_compiled())
        return _made[0]


def _compiled() -> tuple[Any, float]:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    machine = binding.Target.from_default_triple().create_target_machine()
    source = _SOURCE.replace("PAUSE", _PAUSE.get(platform.machine().lower(), ""))
    engine = binding.create_mcjit_compiler(binding.parse_assembly(source), machine)
    engine.finalize_object()
    # A thread may still be watching when the interpreter ends: the function is never taken from memory.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
    place, number = ctypes.c_void_p, ctypes.c_int64
    watch = ctypes.CFUNCTYPE(None, place, place, number, number, number)(engine.get_function_address("watch"))
    numbers, turns, seconds = (ctypes.c_int64 * 2)(), 1000, []
    for _ in range(3):
        begin = perf_counter()
        watch(ctypes.addressof(numbers), ctypes.addressof(numbers), 0, turns, 0)
        seconds.append(perf_counter() - begin)
    return watch, turns / min(seconds)


class Signs:
    """What the threads of a pool show each other: how many jobs were offered, and which helpers are at work.

    They watch for it for so many seconds.
    """

    def __init__(self, helpers: int, patience: float) -> None:
        self._watch, pace = _watch_function()
        self._patience, self._grace = int(patience * pace), int(_GRACE * pace)
        self._numbers = (ctypes.c_int64 * (_LINE * (_FIRST + helpers)))()
        self._apart = _LINE * ctypes.sizeof(ctypes.c_int64)

    def offer(self) -> None:
        """Show that there is a job."""
        self._numbers[_OFFERS] += 1

    def offers(self) -> int:
        """How many there were."""
        return self._numbers[_OFFERS]

    def begin(self, helper: int) -> None:
        """Show that a helper is at work."""
        self._numbers[_LINE * (_FIRST + helper)] = 1

    def await_offer(self, helper: int, offers: int) -> None:
        """Show that a helper is not, and watch until there are more offers than there were."""
        self._wait(_FIRST + helper, _OFFERS, offers, self._grace)

    def await_end(self, helper: int) -> None:
        """Watch until a helper shows that it is not at work."""
        self._wait(_NOBODY, _FIRST + helper, 1, 0)

    def _wait(self, own: int, other: int, was: int, grace: int) -> None:
        first = ctypes.addressof(self._numbers)
        self._watch(first + own * self._apart, first + other * self._apart, was, self._patience, grace)
