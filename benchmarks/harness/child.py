"""What must be measured in a process of its own: a first call, and peak memory. Run by `isolated.py`.

Nothing heavy is imported up here, because imports are part of what is timed. The task comes as JSON in an
argument, the answer leaves as JSON on standard output.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def packed(array: Any) -> dict[str, Any]:
    """An array among the parameters of a task, in JSON."""
    return {"values": array.tolist(), "of": array.dtype.name}


def unpacked(value: dict[str, Any]) -> Any:
    """The array again; what is none stays as it is."""
    if value.keys() != {"values", "of"}:
        return value
    import numpy as np

    return np.array(value["values"], value["of"])


def placed(params: Mapping[str, Any], move: Callable[[Any], Any]) -> dict[str, Any]:
    """The parameters with the arrays among them, which have no gradient, as `move` makes them."""
    return {name: move(value) if getattr(value, "ndim", 0) else value for name, value in params.items()}


def first_call(task: dict[str, Any]) -> dict[str, float]:
    """Seconds for the import, the first forward call and the first backward call."""
    start = time.perf_counter()
    import dynarray as dyn

    imported = time.perf_counter()
    arrays, grad_output, params, wait = _arrays(task)
    operator, seconds = dyn.OPERATORS[task["operator"]], {"import": imported - start}
    with dyn.use_backend(task["backend"]):
        dyn.set_num_threads(task["threads"])
        start = time.perf_counter()
        _, saved = operator.run(arrays, params)
        wait()
        seconds["forward"] = time.perf_counter() - start
        start = time.perf_counter()
        operator.gradients(grad_output, saved, (True,) * len(arrays))
        wait()
        seconds["backward"] = time.perf_counter() - start
    return seconds


def memory(task: dict[str, Any]) -> dict[str, int]:
    """Bytes beyond inputs and outputs at the peak of each pass; the kernels are compiled beforehand."""
    import dynarray as dyn

    meter = _CudaMemory() if task["backend"] == "cuda" else _ResidentMemory()
    operator = dyn.OPERATORS[task["operator"]]
    with dyn.use_backend(task["backend"]):
        dyn.set_num_threads(task["threads"])
        common = {"backend": task["backend"], "params": task["params"]}
        small, small_grad, params, _ = _arrays(task["small"] | common)
        _, small_saved = operator.run(small, params)
        operator.gradients(small_grad, small_saved, (True,) * len(small))
        arrays, grad_output, params, wait = _arrays(task)
        needs = (True,) * len(arrays)

        meter.start()
        output, saved = operator.run(arrays, params)
        wait()
        forward = meter.peak() - output.nbytes
        meter.start()
        gradients = operator.gradients(grad_output, saved, needs)
        wait()
        backward = meter.peak() - sum(gradient.nbytes for gradient in gradients if gradient is not None)
    return {"forward": max(0, forward), "backward": max(0, backward)}


def _arrays(task: dict[str, Any]) -> tuple[tuple, Any, dict[str, Any], Any]:
    """Array arguments, the gradient of the output, parameters, and a function that waits for the device."""
    if task["backend"] == "cuda":
        import cupy as library

        wait = library.cuda.get_current_stream().synchronize
    else:
        import numpy as library

        wait = _nothing
    rng = library.random.default_rng(0)

    def random(shape: list[int] | None) -> Any:
        if shape is None:
            return None
        return rng.standard_normal(shape, dtype=library.float32).astype(task["dtype"], copy=False)

    arrays = tuple(random(shape) for shape in task["shapes"])
    return arrays, random(task["output_shape"]), placed(task["params"], library.asarray), wait


def _nothing() -> None:
    pass


class _ResidentMemory:
    """Peak resident memory of this process, which Linux can be told to start counting anew."""

    def start(self) -> None:
        import ctypes
        import gc

        gc.collect()
        # Freed memory that the allocator still holds would hide what is allocated next.
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
        self._before = self._status("VmRSS")

    def peak(self) -> int:
        return self._status("VmHWM") - self._before

    @staticmethod
    def _status(name: str) -> int:
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(f"{name}:"))


class _CudaMemory:
    """What CuPy's pool takes from the device: emptied first, it takes what is needed at the peak."""

    def start(self) -> None:
        import cupy

        self._pool = cupy.get_default_memory_pool()
        self._pool.free_all_blocks()
        self._before = self._pool.total_bytes()

    def peak(self) -> int:
        return self._pool.total_bytes() - self._before


if __name__ == "__main__":
    wanted = json.loads(sys.argv[2], object_hook=unpacked)
    measured = {"first_call": first_call, "memory": memory}[sys.argv[1]](wanted)
    print(json.dumps(measured))
