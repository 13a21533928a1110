"""What only a GPU can show: streams, graphs, devices, the memory pool, arrays that int does not count.

The contract tests, which run on CuPy arrays too, say what is computed; these say how it behaves there.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pytest
from _contract import BFLOAT16, Call, check_same_bits, compare, evaluate, full_call, parts
from conftest import REHEARSAL, Backend, backend_params

from benchmarks.harness.spin import Spin
from dynarray import OPERATORS
from rawkernels import matmul
from rawkernels.matmul import multiply

# Whoever waits for this is found out.
SPIN_S = 0.5
INT_LIMIT = 2**31
SIZES = {"N": 2, "H": 11, "W": 13} if REHEARSAL else {"N": 2, "H": 61, "W": 83}
MEETING = SIZES if REHEARSAL else {"N": 3, "H": 37, "W": 45}
NOISE = 1 << (10 if REHEARSAL else 24)  # elements

on_a_gpu = pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)
# Each operator; those with a faster way, which adds in any order, that way too: (operator, parameters).
WAYS = [
    pytest.param(operator, changed, id="-".join([operator.name, *changed]))
    for operator in OPERATORS.values()
    for changed in ({}, {"deterministic": False})
    if set(changed) <= set(operator.defaults)
]
each_way = pytest.mark.parametrize(("operator", "changed"), WAYS)
each_operator = pytest.mark.parametrize("operator", list(OPERATORS.values()), ids=list(OPERATORS))


def call_of(
    operator: Any, changed: dict[str, Any], seed: int = 0, dtype: Any = "float32", **sizes: int
) -> Call:
    """A call with every optional array."""
    call = full_call(operator, seed, **(sizes or SIZES)).astype(dtype)
    return replace(call, params={**call.params, **changed})


def tolerance(changed: dict[str, Any]) -> float:
    """Sums in the same order give the same bits."""
    return 1e-5 if changed else 0.0


class OnDevice:
    """A call whose arrays are on the current device; numbers stay on the host, which reads them."""

    def __init__(self, call: Call) -> None:
        import cupy

        self.call = call
        self.arrays = tuple(
            float(array) if name in call.operator.numbers else None if array is None else cupy.asarray(array)
            for name, array in zip(call.operator.arrays, call.arrays, strict=True)
        )
        self.params = Backend("cuda").params(call.params)
        self.grad_output = cupy.asarray(call.grad_output)

    def run(self, needs: tuple[bool, ...] | None = None) -> list[Any]:
        """Forward and backward pass: the output and the gradients, those that are there."""
        operator = self.call.operator
        output, saved = operator.run(self.arrays, self.params)
        gradients = operator.gradients(self.grad_output, saved, needs or (True,) * len(self.arrays))
        return [output, *(gradient for gradient in gradients if gradient is not None)]

    def fill(self, call: Call) -> None:
        """Other values in the same places."""
        for array, values in zip((*self.arrays, self.grad_output), call.everything, strict=True):
            if hasattr(array, "set"):
                array.set(np.ascontiguousarray(values))


def agree(call: Call, results: list[Any], expected: list[Any], rtol: float) -> None:
    """Compare what `OnDevice.run` gave, on the host."""
    assert len(results) == len(expected)
    for number, (mine, right) in enumerate(zip(results, expected, strict=True)):
        mine, right = (each if isinstance(each, np.ndarray) else each.get() for each in (mine, right))
        compare(call, f"result {number}", mine.astype(float), right.astype(float), rtol)


@pytest.fixture
def stream(backend: Backend) -> Iterator[Any]:
    """A stream that waits for no other, current during the test; the pool begins and ends empty."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    made = cupy.cuda.Stream(non_blocking=True)
    with made:
        yield made
    made.synchronize()
    cupy.get_default_memory_pool().free_all_blocks()


@on_a_gpu
@each_way
def test_on_a_stream_of_its_own_a_call_waits_for_nothing(
    operator: Any, changed: dict, backend: Backend, stream: Any
) -> None:
    import cupy

    call = call_of(operator, changed)
    with cupy.cuda.Stream.null:
        expected = [result.get() for result in OnDevice(call).run()]
    placed = OnDevice(call)
    for _ in range(2):  # kernels are compiled, the pool has what is needed
        results = placed.run()
    stream.synchronize()
    spin = Spin(cupy)
    spin(1e-9)
    stream.synchronize()
    spin(SPIN_S)
    results = placed.run()
    returned_early = not stream.done
    stream.synchronize()
    assert returned_early, f"{call.describe()}: forward and backward pass waited for the stream"
    agree(call, results, expected, tolerance(changed))


@on_a_gpu
@each_way
def test_a_graph_is_captured_and_replayed(
    operator: Any, changed: dict, backend: Backend, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = call_of(operator, changed)
    products = []  # by our own kernel, where the library's are refused: the same sums in another order

    def counted(a: Any, b: Any, out: Any = None) -> Any:
        products.append(a.shape)
        return multiply(a, b, out)

    monkeypatch.setattr(matmul, "multiply", counted)
    placed = OnDevice(call)
    for _ in range(2):
        results = placed.run()
    stream.synchronize()
    stream.begin_capture()
    try:
        results = placed.run()
    finally:
        graph = stream.end_capture()
    # Twice, with other values each time; reversed ones keep to the ranges that arrays have.
    for other in (call.map(lambda array: np.flip(array)), call):
        placed.fill(other)
        graph.launch(stream)
        stream.synchronize()
        replayed = [result.get() for result in results]
        agree(call, replayed, placed.run(), 1e-5 if products else tolerance(changed))
        graph.launch(stream)
        agree(call, [result.get() for result in results], replayed, tolerance(changed))


@on_a_gpu
@each_way
def test_a_warm_call_takes_nothing_from_the_device(
    operator: Any, changed: dict, backend: Backend, stream: Any
) -> None:
    import cupy

    class Counter(cupy.cuda.MemoryHook):
        """Counts what the pool has to ask the device for."""

        name = "Counter"
        count = 0

        def alloc_preprocess(self, **_: Any) -> None:
            self.count += 1

    placed = OnDevice(call_of(operator, changed))
    for _ in range(3):
        placed.run()
    stream.synchronize()
    free, _ = cupy.cuda.Device().mem_info
    with Counter() as counter:
        for _ in range(5):
            placed.run()
    stream.synchronize()
    assert counter.count == 0
    # What does not go through the pool: memory of kernels and libraries.
    assert cupy.cuda.Device().mem_info[0] == free


@on_a_gpu
@each_operator
@pytest.mark.parametrize("dtype", ["float32", "float16", BFLOAT16], ids=str)
def test_the_same_bits_beside_other_work(operator: Any, dtype: Any, backend: Backend, stream: Any) -> None:
    """Many points on few pixels: where additions meet, their order would show."""
    import cupy

    call = call_of(operator, {}, seed=4, dtype=dtype, **MEETING)
    first = evaluate(call, backend)
    noise, beside = cupy.ones(NOISE, cupy.float32), cupy.cuda.Stream(non_blocking=True)
    for _ in range(4):
        with beside:
            for _ in range(8):
                cupy.sqrt(noise, out=noise)
        check_same_bits(call, evaluate(call, backend), first)
    beside.synchronize()


@on_a_gpu
@each_operator
def test_an_array_between_two_addresses_is_refused(operator: Any, backend: Backend) -> None:
    """A GPU reads no element at an address that is no multiple of its size; trying ends its context."""
    import cupy

    call = call_of(operator, {})
    for place, name in enumerate((*operator.arrays, "grad_output")):
        placed = OnDevice(call)
        everything = [*placed.arrays, placed.grad_output]
        if not hasattr(everything[place], "shape"):  # a number
            continue
        memory = cupy.zeros(everything[place].nbytes + 4, cupy.uint8)[2:-2]
        everything[place] = memory.view(cupy.float32).reshape(everything[place].shape)
        placed.arrays, placed.grad_output = tuple(everything[:-1]), everything[-1]
        with pytest.raises(
            ValueError, match=rf"{name} begins at an address that is no multiple of its element"
        ):
            placed.run()


@on_a_gpu
@each_operator
def test_a_second_device(operator: Any, backend: Backend) -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one GPU")
    call = call_of(operator, {})
    expected = evaluate(call, backend)
    with cupy.cuda.Device(1):
        placed = OnDevice(call)
        mine = evaluate(call, backend)
        assert all(result.device.id == 1 for result in placed.run())
    for what, there, here in parts(call, mine, expected):
        compare(call, what, there, here, 1e-5)
    with pytest.raises(ValueError, match="device"):
        placed.run()


def repeated(array: Any, times: int) -> Any:
    """The images of an array, again and again."""
    import cupy

    result = cupy.empty((times, *array.shape), array.dtype)
    result[...] = array
    return result.reshape(times * array.shape[0], *array.shape[1:])


def check_repeated(call: Call, what: str, large: Any, small: Any, times: int) -> None:
    """Require the images of `large` to be those of `small`, again and again."""
    import cupy

    assert large.size == times * small.size
    every, right = large.reshape(times, *small.shape), small.astype(cupy.float32)
    at_once = max(1, 2**27 // max(1, small.size))
    worst = 0.0
    for start in range(0, times, at_once):
        part = every[start : start + at_once].astype(cupy.float32)
        worst = max(worst, float(abs(part - right).max()))
    # One unit of bfloat16; not "worst > ...": NaN must fail. An index that overflows gives another image.
    allowed = 2**-7 * float(abs(right).max())
    assert worst <= allowed, f"{call.describe()} {times} times: {what} is off by {worst}, allowed {allowed}"


@on_a_gpu
@each_operator
def test_more_elements_than_int_counts(operator: Any, backend: Backend) -> None:
    """So many images that the largest array has over 2**31 elements: each is what it is among seven."""
    import cupy

    images = 7
    changed = {"deterministic": False} if "deterministic" in operator.defaults else {}
    call = call_of(operator, changed, dtype=BFLOAT16, N=images, H=64, W=64)
    given = [array for array in call.everything if array is not None]
    times = ceil((INT_LIMIT + 1) / max(array.size for array in given))
    needed = int(2.5 * 2 * sum(array.nbytes for array in given) * times)
    cupy.get_default_memory_pool().free_all_blocks()
    free, _ = cupy.cuda.Device().mem_info
    if needed > free:
        pytest.skip(f"needs about {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    small = OnDevice(call)
    large = OnDevice(call)
    batched = [_of_images(array, images) for array in small.arrays]
    large.arrays = tuple(
        repeated(array, times) if many else array for array, many in zip(large.arrays, batched, strict=True)
    )
    large.grad_output = repeated(large.grad_output, times)
    assert max(array.size for array in large.arrays if hasattr(array, "size")) > INT_LIMIT or (
        large.grad_output.size > INT_LIMIT
    )
    few, many = small.run(), large.run()
    with_gradient = [
        many for many, array in zip(batched, small.arrays, strict=True) if hasattr(array, "shape")
    ]
    for number, (of_images, a, b) in enumerate(zip([True, *with_gradient], many, few, strict=True)):
        if of_images:
            check_repeated(call, f"result {number}", a, b, times)
        else:  # the sum over all images, rounded once
            right = b.astype(cupy.float64).get() * times
            compare(call, f"result {number}", a.astype(cupy.float64).get(), right, 2**-6)
    del small, large, few, many
    cupy.get_default_memory_pool().free_all_blocks()


def _of_images(array: Any, images: int) -> bool:
    """Whether the first axis of an array counts images: nothing else is of that length here."""
    return hasattr(array, "shape") and array.ndim > 0 and array.shape[0] == images
