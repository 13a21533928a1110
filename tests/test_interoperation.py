"""Arrays of other libraries go in where they lie, and results go out: by DLPack, `__array__`, and on the GPU.

What needs PyTorch, JAX, onnx or array-api-compat is skipped where these are not installed (the extra
`interop`), and says so.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from _contract import Call, each_operator, full_call

import dynarray as dyn
from autodiff import Tape, Variable
from autodiff import functions as F
from dynarray import Operator
from dynarray._foreign import view

INTEROP = Path(__file__).resolve().parent.parent / "examples" / "interop"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of examples/interop."""
    monkeypatch.syspath_prepend(str(INTEROP))
    return importlib.import_module(name)


def results(call: Call, change: Callable[[Any], Any]) -> list[Any]:
    """Output and gradients of a call, each array of which was changed."""
    named = {n: None if a is None else change(a) for n, a in zip(call.operator.arrays, call.arrays)}
    params = {n: change(v) if isinstance(v, np.ndarray) else v for n, v in call.params.items()}
    positional, by_keyword = call.operator.arguments(tuple(named.values()))
    output = call.operator.function(*positional, **by_keyword, **params)
    backward = getattr(dyn, f"{call.operator.name}_backward")
    return [output, *backward(change(call.grad_output), *positional, **by_keyword, **params)]


def check_alike(call: Call, change: Callable[[Any], Any]) -> None:
    """Other arrays of the same values give the same bits, as arrays of NumPy."""
    for found, right in zip(results(call, change), results(call, lambda array: array), strict=True):
        assert (found is None) == (right is None)
        if right is not None:
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, right)


class Foreign:
    """An array of no known library, which lends its memory, read-only, as JAX does."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array.view()
        self._array.flags.writeable = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)


class Convertible:
    """What NumPy makes an array of, as a table or a data set in a file."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


@each_operator
@pytest.mark.parametrize("kind", [Foreign, Convertible])
def test_operators_take_arrays_of_other_libraries(operator: Operator, kind: type) -> None:
    if kind is Foreign and np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("NumPy 2.0 lends no read-only array by DLPack")
    check_alike(full_call(operator), kind)


def test_arrays_are_read_where_they_lie() -> None:
    x = np.arange(6.0).reshape(2, 3)
    assert np.shares_memory(view("f", "x", Convertible(x)), x)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        assert np.shares_memory(view("f", "x", Foreign(x)), x)


def test_the_tape_takes_them_as_constants() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 2, 5, 6)), Variable(rng.standard_normal((1, 1, 3, 3, 5, 6)))
    found = []
    for each in (x, Convertible(x)):
        with Tape() as tape:
            loss = F.sum(F.square(F.local_filter2d(each, weight)))
        found.append(tape.gradient(loss, weight))
    np.testing.assert_array_equal(*found)


def test_what_cannot_be_read_in_place_is_refused_by_name() -> None:
    class Waiting(Foreign):
        def __dlpack__(self, **kwargs: Any) -> Any:
            raise BufferError("it waits for its gradient")

    x, weight = np.ones((1, 2, 5, 6)), np.ones((1, 1, 3, 3, 5, 6))
    with pytest.raises(TypeError, match=r"local_filter2d: weight, a .*Waiting, .*waits for its gradient"):
        dyn.local_filter2d(x, Waiting(weight))
    with pytest.raises(TypeError, match=r"local_filter2d: grad_output, a .*Waiting"):
        dyn.local_filter2d_backward(Waiting(x), x, weight)
    with pytest.raises(TypeError, match=r"local_filter2d: x must be a numpy.ndarray .*Variable"):
        dyn.local_filter2d(Variable(x), weight)


def test_arrays_of_a_gpu_go_to_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of CuPy's functions is asked, with a module of two functions in its place: there is no GPU."""
    place = SimpleNamespace(from_dlpack=lambda array: ("dlpack", array), asarray=lambda array: ("cai", array))
    monkeypatch.setitem(sys.modules, "cupy", place)

    class OnGpu(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    class OfNumba:
        __cuda_array_interface__: ClassVar = {"shape": (1,), "typestr": "<f8", "data": (0, True)}

    for array, way in ((OnGpu(np.ones(1)), "dlpack"), (OfNumba(), "cai")):
        assert view("f", "x", array) == (way, array)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(TypeError, match=r"f: x .*lies on a GPU, where CuPy reads it, which is not installed"):
        view("f", "x", OfNumba())


def differentiable_call(operator: Operator) -> Call:
    """A call at which differences are derivatives: away from the kinks, and by the exact rule."""
    call = full_call(operator)
    if "displacement_gradient" in call.params:
        call.params["displacement_gradient"] = "exact"
    return call


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="the extra interop is not installed: no PyTorch")


@pytest.fixture
def jax() -> Any:
    jax = pytest.importorskip("jax", reason="the extra interop is not installed: no JAX")
    jax.config.update("jax_enable_x64", True)
    return jax


@each_operator
def test_operators_take_tensors_of_pytorch(torch: Any, operator: Operator) -> None:
    check_alike(full_call(operator), lambda array: torch.from_numpy(np.array(array)))


def test_pytorch_takes_results_in_place_and_tensors_that_need_gradients_are_refused(torch: Any) -> None:
    x, weight = np.ones((1, 2, 5, 6)), np.ones((1, 1, 3, 3, 5, 6))
    y = dyn.local_filter2d(x, weight)
    tensor = torch.from_dlpack(y)
    tensor[0, 0, 0, 0] = 77
    assert y[0, 0, 0, 0] == 77
    with pytest.raises(TypeError, match=r"local_filter2d: x, a torch.Tensor, .*detach"):
        dyn.local_filter2d(torch.ones(x.shape, dtype=torch.float64, requires_grad=True), weight)


@each_operator
def test_pytorch_differentiates_operators(
    torch: Any, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = example("torch_function", monkeypatch)
    call = differentiable_call(operator)
    names = [name for name, array in zip(operator.arrays, call.arrays) if array is not None]
    given = [torch.tensor(array, requires_grad=True) for array in call.arrays if array is not None]

    def run(*tensors: Any) -> Any:
        named = dict(zip(names, tensors))
        positional, by_keyword = operator.arguments(tuple(map(named.get, operator.arrays)))
        return function.call(operator.name, *positional, **by_keyword, **call.params)

    assert torch.autograd.gradcheck(run, given)


@each_operator
def test_jax_differentiates_operators(jax: Any, operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    function = example("jax_vjp", monkeypatch)
    call = full_call(operator)
    apply = function.differentiable(operator.name, **call.params)
    arrays = [None if array is None else jax.numpy.asarray(array) for array in call.arrays]
    output, pull = jax.vjp(jax.jit(apply), *arrays)
    found = [output, *pull(jax.numpy.asarray(call.grad_output))]
    for ours, right in zip(found, results(call, lambda array: array), strict=True):
        assert (ours is None) == (right is None)
        if right is not None:
            np.testing.assert_array_equal(ours, right)


@each_operator
def test_operators_take_arrays_of_jax(jax: Any, operator: Operator) -> None:
    check_alike(full_call(operator), jax.numpy.asarray)


def test_jax_takes_results(jax: Any) -> None:
    y = dyn.local_filter2d(np.ones((1, 2, 5, 6)), np.ones((1, 1, 3, 3, 5, 6)))
    np.testing.assert_array_equal(jax.numpy.from_dlpack(y), y)


def test_what_jax_has_not_computed_yet_is_refused(jax: Any) -> None:
    with pytest.raises(TypeError, match=r"local_filter2d: x, a jax.*Tracer"):
        jax.jit(lambda x: dyn.local_filter2d(x, np.ones((1, 1, 3, 3, 5, 6))))(np.ones((1, 2, 5, 6)))


@pytest.mark.slow  # ONNX's evaluator walks through taps and pixels in Python
def test_onnx_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="the extra interop is not installed: no onnx")
    onnx_deform = example("onnx_deform", monkeypatch)
    rng = np.random.default_rng(0)
    for title, call in onnx_deform.CALLS.items():
        arrays = onnx_deform.draw(rng, **call)
        params = {key: value for key, value in call.items() if key != "d"}
        assert onnx_deform.compare(arrays, **params) < 1e-4, title  # sums of 24 products in float32


@each_operator
def test_operators_take_what_the_array_api_calls_numpy(operator: Operator) -> None:
    compat = pytest.importorskip("array_api_compat", reason="the extra interop is not installed")
    xp = importlib.import_module("array_api_compat.numpy")
    call = full_call(operator)
    for each in results(call, lambda array: xp.asarray(array, copy=True)):
        assert each is None or compat.array_namespace(each, call.arrays[0]) is xp


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torch_function", "jax_vjp"])
def test_scripts_learn(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(script.partition("_")[0], reason="the extra interop is not installed")
    example(script, monkeypatch).main()
    first, last = map(float, capsys.readouterr().out.split()[-2:])
    assert last < first / 10
