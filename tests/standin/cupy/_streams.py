"""Devices, streams, events and graphs: whose turn it is, and what waits for what."""

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

DEVICES = 2
_addresses = count(0x1000)
_thread = threading.local()


class CUDARuntimeError(RuntimeError):
    """What the runtime of CUDA refuses."""


def current_device() -> int:
    """The device that this thread works on."""
    return getattr(_thread, "device", 0)


class Device:
    """One of the devices that are played here; entered, the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = current_device() if device is None else int(device)
        if not 0 <= self.id < DEVICES:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self) -> "Device":
        stack = _thread.__dict__.setdefault("devices", [])
        stack.append(current_device())
        _thread.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _thread.device = _thread.devices.pop()

    def synchronize(self) -> None:
        """Wait for all that was ever begun."""
        for stream in [Stream.null, *_used]:
            stream.synchronize()

    @property
    def mem_info(self) -> tuple[int, int]:
        """Bytes that are free, and all bytes."""
        from . import _memory

        return _memory.DEVICE_BYTES - _memory.get_default_memory_pool().taken(self.id), _memory.DEVICE_BYTES

    @property
    def attributes(self) -> dict[str, int]:
        """The one that is asked for here."""
        return {"L2CacheSize": 1 << 20}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Stream:
    """Work in its order; entered, the current one. It is busy from the first work on until somebody waits."""

    null: "Stream"

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.ptr = 0 if null else next(_addresses)
        self.begun = self.finished = 0  # pieces of work
        self.recorded: list[Callable[[], object]] | None = None
        self.waits: list[tuple[int, Callable[[], bool]]] = []  # for what others do: which piece, is it over
        if not null:
            _used.append(self)

    def __enter__(self) -> "Stream":
        _stack().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _stack().pop()

    @property
    def done(self) -> bool:
        """Whether everything is finished: not before somebody has waited for it."""
        if self.recorded is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        return self.begun == self.finished

    def synchronize(self) -> None:
        """Wait until everything is finished."""
        if self.recorded is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        self.look(self.begun)
        self.finished = self.begun

    def record(self, event: Any = None) -> "Event":
        """An event behind all that was begun."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        """What follows comes after the event: since work is done at once, after what others do before it."""
        if event._stream is not None:
            event._stream.look(event._place)

    def look(self, until: int = 0) -> None:
        """What others do, as far as it is over; wait for the first pieces."""
        while self.waits and (self.waits[0][1]() or self.waits[0][0] <= until):
            piece, is_over = self.waits[0]
            if is_over():
                self.waits.pop(0)
                self.finished = max(self.finished, piece)

    def begin_capture(self, mode: Any = None) -> None:
        """What follows is kept for a graph, and not done."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.recorded is not None:
            raise CUDARuntimeError(
                "cudaErrorIllegalState: the operation cannot be performed in the present state"
            )
        self.recorded = []

    def end_capture(self) -> "Graph":
        """The graph of what was kept."""
        if self.recorded is None:
            raise CUDARuntimeError(
                "cudaErrorIllegalState: the operation cannot be performed in the present state"
            )
        work, self.recorded = self.recorded, None
        graph = Graph.__new__(Graph)
        graph._work = work
        return graph

    def is_capturing(self) -> bool:
        """Whether it is between the two."""
        return self.recorded is not None


_used: list[Stream] = []
Stream.null = Stream(null=True)


def _stack() -> list[Stream]:
    return _thread.__dict__.setdefault("streams", [Stream.null])


def current() -> Stream:
    """The stream on which this thread works."""
    return _stack()[-1]


def get_current_stream(device_id: int = -1) -> Stream:
    """The stream on which this thread works."""
    return current()


def enqueue(work: Callable[[], object], stream: Stream | None = None) -> None:
    """Do a piece of work on a stream, or keep it, where the stream is captured."""
    stream = stream or current()
    if stream.recorded is not None:
        stream.recorded.append(work)
        return
    stream.begun += 1
    work()


def wait(what: str) -> None:
    """What a copy to the host does: wait for the current stream."""
    stream = current()
    if stream.recorded is not None:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while the stream is captured")
    stream.synchronize()


class Graph:
    """What was begun while a stream was captured."""

    _work: list[Callable[[], object]]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream capture"
        )

    def launch(self, stream: Stream | None = None) -> None:
        """Do all of it."""
        for work in self._work:
            enqueue(work, stream)


class Event:
    """A time in a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._stream: Stream | None = None
        self._place, self.time = 0, 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Remember what was begun before."""
        self._stream = stream or current()
        self._place, self.time = self._stream.begun, time.perf_counter()

    def synchronize(self) -> None:
        """Wait for what was begun before."""
        if self._stream is not None:
            self._stream.look(self._place)
            self._stream.finished = max(self._stream.finished, self._place)

    @property
    def done(self) -> bool:
        """Whether that is finished."""
        if self._stream is not None:
            self._stream.look()
        return self._stream is None or self._stream.finished >= self._place

    @property
    def recorded(self) -> bool:
        """Whether it is in a stream at all."""
        return self._stream is not None


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two events that are over, on the clock of the host: they say nothing of a GPU."""
    for event in (start_event, end_event):
        if not event.recorded:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
        if not event.done:
            raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return (end_event.time - start_event.time) * 1e3
