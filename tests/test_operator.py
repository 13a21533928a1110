"""The parts that every operator is made of: record, registry, dispatch, checks, geometry."""

import asyncio
import inspect
import itertools
import threading
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import dynarray as dyn
from dynarray import OPERATORS, Operator
from dynarray._check import check_choice, check_divides, check_int, check_pair, check_shape
from dynarray._dispatch import BACKENDS, choose_backend, library_of
from dynarray._geometry import (
    LINE,
    PLANE,
    check_window,
    input_positions,
    output_size,
    reading_inside,
    resolve_padding,
)
from dynarray._operator import Checked, Form, backward_of, forms, modules, register


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Operator:
    """A registered operator of our own, y = factor * a + b, with b optional; gone after the test."""
    monkeypatch.setattr("dynarray._operator.OPERATORS", dict(OPERATORS))

    def scaled(a: Any, b: Any = None, *, factor: int = 2) -> Any:
        return operator((a, b), factor=factor)

    def check(a: Any, b: Any, *, factor: Any) -> Checked:
        return Checked((b, a), {"factor": check_int("scaled", "factor", factor, 1)}, a.shape)

    def forward(b: Any, a: Any, *, factor: int) -> tuple[Any, tuple]:
        return factor * a + (0 if b is None else b), (b, a, "extra")

    def backward(grad: Any, kept: tuple, needs: tuple, *, factor: int) -> tuple:
        assert len(kept) in (2, 3)
        return (grad * 1 if needs[0] else None), (factor * grad if needs[1] else None)

    operator = register(
        scaled,
        forward={"cpu": forward, "reference": forward},
        backward={"cpu": backward, "reference": backward},
        check=check,
        roles=("b", "a"),
    )
    return operator


A, B = np.array([1.0, 2.0]), np.array([10.0, 20.0])


def test_a_record_is_read_off_the_signature(scaled: Operator) -> None:
    assert scaled.name == "scaled"
    assert scaled.arrays == ("a", "b")
    assert scaled.optional == ("b",)
    assert scaled.defaults == {"factor": 2}


def test_run_and_gradients_translate_between_arguments_and_roles(scaled: Operator) -> None:
    output, saved = scaled.run((A, B), {"factor": 3})
    assert output.tolist() == [13, 26]
    assert saved.backend == "cpu"
    assert saved.arrays[0] is B and saved.arrays[1] is A
    assert [g.tolist() for g in scaled.gradients(A, saved, (True, True))] == [[3, 6], [1, 2]]
    one, none = scaled.gradients(A, saved, (True, False))
    assert one.tolist() == [3, 6] and none is None


def test_a_subclass_may_have_any_name(scaled: Operator) -> None:
    own = type("ndarray", (np.ndarray,), {})
    for _ in range(2):  # the second call finds what was remembered of the first
        output, _ = scaled.run((A.view(own), B), {})
        assert output.tolist() == scaled.run((A, B), {})[0].tolist()


def test_an_array_left_out_has_no_gradient(scaled: Operator) -> None:
    output, saved = scaled.run((A, None), {})
    assert output.tolist() == [2, 4]
    assert [g is None for g in scaled.gradients(A, saved, (True, True))] == [False, True]


def test_the_public_backward_takes_the_arguments_of_the_forward(scaled: Operator) -> None:
    class ScaledGradients(NamedTuple):
        a: Any
        b: Any

    @backward_of(scaled, ScaledGradients)
    def scaled_backward(
        grad_output: Any, a: Any, b: Any = None, *, factor: int = 2, needs: Any = None
    ) -> Any:
        """Gradients of `scaled`."""

    backward: Any = scaled_backward
    assert backward.__name__ == "scaled_backward"
    assert backward.__doc__.startswith("Gradients of `scaled`.\n\nParameters\n")
    assert list(inspect.signature(backward).parameters) == ["grad_output", "a", "b", "factor", "needs"]
    grads = backward(A, A, B, factor=5)
    assert type(grads) is ScaledGradients
    assert grads.a.tolist() == [5, 10] and grads.b.tolist() == [1, 2]
    assert backward(A, A, b=B, needs=(False, True)).a is None
    assert backward(grad_output=A, a=A).b is None


def test_registration_does_not_outlive_its_test() -> None:
    assert "scaled" not in OPERATORS


def test_required_parameters_have_no_default(scaled: Operator) -> None:
    carafe = OPERATORS["carafe"]
    assert carafe.defaults["kernel_size"] is inspect.Parameter.empty
    with pytest.raises(TypeError, match=r"^carafe: parameter 'kernel_size' must be given"):
        carafe.run((np.ones((1, 1, 2, 2)), np.ones((1, 9, 4, 4))), {})


def test_the_registry_and_the_public_functions_agree() -> None:
    assert {"local_filter2d", "ddf", "ddf_upsample", "carafe", "involution"} <= set(OPERATORS)
    for name, operator in OPERATORS.items():
        assert operator.name == name
        assert operator.function is getattr(dyn, name)
        assert set(operator.forward) == set(operator.backward) == set(BACKENDS)
        assert [role for role in operator.roles if role] and set(operator.roles) - {""} == set(
            operator.arrays
        )


def test_a_form_is_imported_when_it_is_called() -> None:
    reference, _, cpu, cuda = modules("no_such_stem")
    table = forms(reference.forward, cpu.forward, cuda.forward)
    assert set(table) == set(BACKENDS)
    assert table["cuda"] == Form("rawkernels.no_such_stem", "forward")
    with pytest.raises(ModuleNotFoundError, match="no_such_stem"):
        table["reference"]()
    assert Form("math", "hypot")(3, 4) == 5


# ---- dispatch


def test_numpy_arrays_go_to_the_cpu_and_a_forced_backend_wins() -> None:
    assert choose_backend("op", {"a": A}) == "cpu"
    with dyn.use_backend("reference"):
        assert choose_backend("op", {"a": A}) == "reference"
        with dyn.use_backend("host"):
            assert choose_backend("op", {"a": A}) == "host"
        assert choose_backend("op", {"a": A}) == "reference"
    assert choose_backend("op", {"a": A}) == "cpu"


def test_a_forced_backend_ends_with_its_block_even_by_an_exception() -> None:
    with pytest.raises(KeyError), dyn.use_backend("reference"):
        raise KeyError
    assert choose_backend("op", {"a": A}) == "cpu"


def test_a_forced_backend_holds_for_its_thread_alone() -> None:
    seen = []
    with dyn.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(choose_backend("op", {"a": A})))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_a_forced_backend_holds_for_its_task_alone() -> None:
    """Two tasks of asyncio take turns in one thread, each in a block of its own, and go on after it."""
    seen = []

    async def use(name: str, turns: int) -> None:
        with dyn.use_backend(name):
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append((name, choose_backend("op", {"a": A})))
        await asyncio.sleep(0)
        seen.append(("cpu", choose_backend("op", {"a": A})))

    async def both() -> None:
        await asyncio.gather(use("reference", 2), use("host", 3))

    asyncio.run(both())
    assert len(seen) == 7 and all(expected == chosen for expected, chosen in seen), seen
    assert [chosen for _, chosen in seen[:4]] == ["reference", "host"] * 2


@pytest.mark.parametrize("name", ["gpu", "", None, "CPU", 1])
def test_unknown_backends_are_refused_on_entry(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^use_backend: name must be one of 'reference', .* got "):  # noqa: SIM117
        with dyn.use_backend(name):
            raise AssertionError("the block must not run")


def test_cuda_does_not_take_numpy_arrays() -> None:
    with (
        dyn.use_backend("cuda"),
        pytest.raises(TypeError, match=r"^op: backend 'cuda' cannot take a, a numpy\.ndarray"),
    ):
        choose_backend("op", {"a": A})


class FakeCupyArray(SimpleNamespace):
    """What dispatch looks at, so that its rules about devices can be tested without a GPU."""


FakeCupyArray.__module__ = "cupy._core.core"
FakeCupyArray.__name__ = "ndarray"


def on_gpu(device: int, dtype: str = "float64") -> Any:
    place = SimpleNamespace(device_id=device, ptr=512)
    return FakeCupyArray(device=f"<CUDA Device {device}>", data=place, dtype=np.dtype(dtype))


def test_cupy_arrays_go_to_cuda_and_devices_do_not_mix() -> None:
    assert library_of(on_gpu(0)) == "cupy"
    assert choose_backend("op", {"a": on_gpu(1), "b": on_gpu(1)}) == "cuda"
    assert choose_backend("op", {"a": on_gpu(0, "float16")}) == "cuda"
    with pytest.raises(ValueError, match=r"^op: b is on <CUDA Device 1> but a is on <CUDA Device 0>"):
        choose_backend("op", {"a": on_gpu(0), "b": on_gpu(1)})
    with pytest.raises(TypeError, match=r"^op: b is a numpy\.ndarray but a is a cupy"):
        choose_backend("op", {"a": on_gpu(0), "b": A})
    for backend in ("cpu", "host", "reference"):
        with (
            dyn.use_backend(backend),
            pytest.raises(TypeError, match=f"^op: backend '{backend}' cannot take a"),
        ):
            choose_backend("op", {"a": on_gpu(0)})


def test_subclasses_that_mean_something_else_are_no_arrays() -> None:
    assert library_of(np.ma.masked_array(A)) is None
    assert library_of([1.0]) is None
    assert library_of(np.float64(1)) is None
    assert library_of(None) is None


# ---- checks


def test_check_shape_binds_symbols_and_compares_them() -> None:
    sizes = check_shape("op", "x", np.empty((2, 3, 4)), "N C H", {"N": 2})
    assert sizes == {"N": 2, "C": 3, "H": 4}
    assert check_shape("op", "x", np.empty((3, 3)), "k k", {}) == {"k": 3}
    with pytest.raises(
        ValueError, match=r"^op: x must have shape \(N, C, H\) = \(5, C, H\), got \(2, 3, 4\)$"
    ):
        check_shape("op", "x", np.empty((2, 3, 4)), "N C H", {"N": 5})
    with pytest.raises(ValueError, match=r"^op: x must have shape \(N, C\), got \(2,\)$"):
        check_shape("op", "x", np.empty(2), "N C", {})
    with pytest.raises(ValueError, match=r"^op: x must have shape \(k, k\), got \(2, 3\)$"):
        check_shape("op", "x", np.empty((2, 3)), "k k", {})


def test_check_shape_leaves_the_sizes_it_was_given() -> None:
    sizes = {"N": 2}
    check_shape("op", "x", np.empty((2, 3)), "N C", sizes)
    assert sizes == {"N": 2}


@pytest.mark.parametrize(
    ("small", "large", "fits"), [(1, 4, True), (4, 4, True), (3, 4, False), (0, 4, False), (8, 4, False)]
)
def test_check_divides(small: int, large: int, fits: bool) -> None:
    sizes = {"G": small, "C": large}
    if fits:
        check_divides("op", "weight", "G", "C", sizes)
        return
    with pytest.raises(ValueError, match=f"^op: weight has G = {small}.* C = {large}"):
        check_divides("op", "weight", "G", "C", sizes)


@pytest.mark.parametrize("value", [1, np.int8(1), np.uint64(1), np.array(1)])
def test_whole_numbers_of_any_kind_pass(value: Any) -> None:
    number = check_int("op", "stride", value, 1)
    assert number == 1 and type(number) is int
    pair = check_pair("op", "stride", (value, 2), 1)
    assert pair == (1, 2) and all(type(number) is int for number in pair)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(1), "1", None, [1], 1j, np.array(True)])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^op: stride must be an int, got "):
        check_int("op", "stride", value, 1)
    with pytest.raises(TypeError, match=r"^op: stride must be an int or a pair \(y, x\) of ints, got "):
        check_pair("op", "stride", (1, value), 1)


def test_pairs() -> None:
    assert check_pair("op", "stride", 3, 1) == (3, 3)
    assert check_pair("op", "stride", [3, 2], 1) == (3, 2)
    for value in ((), (1,), (1, 1, 1), "11", {1: 2}):
        with pytest.raises(TypeError, match=r"^op: stride must be an int or a pair"):
            check_pair("op", "stride", value, 1)
    for value in (0, (1, 0), (0, 1), -3):
        with pytest.raises(ValueError, match=r"^op: stride must be at least 1, got "):
            check_pair("op", "stride", value, 1)


def test_choices() -> None:
    assert check_choice("op", "combine", "add", ("mul", "add")) == "add"
    for value in ("sub", "", None, ["mul"], np.array(["mul", "add"])):
        with pytest.raises(ValueError, match=r"^op: combine must be one of 'mul', 'add', got "):
            check_choice("op", "combine", value, ("mul", "add"))


# ---- geometry


@pytest.mark.parametrize("size", range(6))
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_output_size_counts_the_windows_that_fit(
    size: int, kernel: int, stride: int, dilation: int, padding: int
) -> None:
    """Slide a window over the padded image, and count."""
    padded, reach = size + 2 * padding, dilation * (kernel - 1) + 1
    windows = [start for start in range(0, padded, stride) if start + reach <= padded]
    assert output_size(size, kernel, stride, dilation, padding) == len(windows)
    for tap in range(kernel):
        positions = input_positions(len(windows), tap, stride, dilation, padding)
        assert positions.tolist() == [start + tap * dilation - padding for start in windows]


def test_upsampled_positions_repeat() -> None:
    assert output_size(4, 3, 1, 1, 1, upsample=3) == 12
    assert input_positions(6, 0, 1, 2, 2, upsample=3).tolist() == [-2, -2, -2, -1, -1, -1]


def test_same_padding() -> None:
    assert resolve_padding("op", None, (3, 7), (2, 5)) == (2, 15)
    assert resolve_padding("op", (1, 2), (4, 4), (1, 1)) == (1, 2)
    assert resolve_padding("op", 3, (4, 4), (1, 1)) == (3, 3)
    with pytest.raises(ValueError, match=r"^op: padding=None means 'same' and needs odd kernel sizes"):
        resolve_padding("op", None, (3, 4), (1, 1))


def test_lines_are_planes_of_one_row() -> None:
    assert PLANE.pattern("N C image") == "N C H W" and LINE.pattern("N G kernel outputs") == "N G k Lo"
    line = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert LINE.in_plane(line, "N G kernel outputs").shape == (2, 3, 1, 5, 1, 7)
    assert np.shares_memory(LINE.in_plane(line, "N G kernel outputs"), line)
    assert PLANE.in_plane(line, "N C image") is line


def test_a_window_of_a_line_is_that_of_a_plane_of_one_row() -> None:
    sizes = {"L": 9, "k": 3, "H": 1, "W": 9, "kh": 1, "kw": 3}
    line = check_window("op", "weight", sizes, LINE, stride=2, dilation=3, padding=4)
    plane = check_window("op", "weight", sizes, stride=(1, 2), dilation=(1, 3), padding=(0, 4))
    assert line.outputs == (6,) and line.sizes == {"Lo": 6} and plane.sizes == {"Ho": 1, "Wo": 6}
    assert line.shortened() == {"stride": (1, 2), "dilation": (1, 3), "padding": (0, 4)} == plane.shortened()
    assert line.bounded("op") == plane.bounded("op")
    assert line.output_shapes(2, 5) == ((2, 5, 6), (2, 5, 1, 6))
    assert plane.output_shapes(2, 5) == ((2, 5, 1, 6),) * 2


def test_windows_name_what_is_wrong_with_them() -> None:
    sizes = {"L": 9, "k": 3, "H": 9, "W": 9, "kh": 0, "kw": 3}
    with pytest.raises(ValueError, match=r"^op: weight must have kernel sizes of at least 1, got \(0, 3\)"):
        check_window("op", "weight", sizes)
    with pytest.raises(TypeError, match=r"^op: stride must be an int, got \(1, 1\)"):
        check_window("op", "weight", sizes, LINE, stride=(1, 1))
    far = check_window("op", "weight", sizes | {"L": 2**40}, LINE, dilation=2**31)
    with pytest.raises(ValueError, match=rf"^op: .* taps \d+ pixels away; at most {2**30} are possible"):
        far.bounded("op")


@pytest.mark.parametrize("outputs", [(0, 7), (2, 5), (3, 3)])
def test_what_reads_inside_is_found(outputs: tuple[int, int]) -> None:
    """Against a look at every output."""
    for tap, size, stride, dilation, padding in itertools.product(range(4), (1, 5), (1, 3), (1, 2), (0, 3)):
        found, read = reading_inside(outputs, tap, size, stride, dilation, padding)
        places = [out * stride + tap * dilation - padding for out in range(*outputs)]
        inside = [i for i, place in enumerate(places) if 0 <= place < size]
        assert list(range(len(places)))[found] == inside
        assert list(range(size))[read] == [places[i] for i in inside]
