"""Wrong calls of functions and layers: TypeError or ValueError, with function and argument named, at once."""

import inspect
import re

import numpy as np
import pytest
from _function_cases import public_functions
from _layer_cases import LAYERS as LAYER_TABLE
from _layer_cases import array
from _wrong_calls import FUNCTIONS, LAYERS, NO_ARRAYS, WRONG, call_function

import dynarray
from autodiff import Variable, layers
from autodiff import functions as F

CALLS = 5000
TABLES = {
    **{name: (call_function, arguments) for name, arguments in FUNCTIONS.items()},
    **{
        name: (lambda layer, given: getattr(layers, layer)(**given), arguments)
        for name, arguments in LAYERS.items()
    },
}
every_call = pytest.mark.parametrize("name", TABLES)


def good(arguments):
    return {name: value for name, (value, _) in arguments.items()}


def refused(name, call, given, arguments):
    """Why the call was not refused as it should be; nothing if it was."""
    shown = f"{name}({', '.join(f'{a}={given.get(a)!r}' for a in arguments)})"
    try:
        result = call(name, given)
    except (TypeError, ValueError) as error:
        text = str(error)
        if not re.match(rf"{name}(: |\(\))", text):  # Python itself writes f() where arguments are missing
            return f"{shown}: no name of the function in {text!r}"
        if not any(re.search(rf"\b{argument}\b", text) for argument in arguments):
            return f"{shown}: no name of the argument in {text!r}"
        return ""
    except Exception as error:
        return f"{shown}: {type(error).__name__} {error}"
    return f"{shown}: gave {result!r:.100}"


def test_the_tables_are_complete():
    """Every public function and layer, with each of its arguments."""
    assert set(FUNCTIONS) == public_functions()
    public = {name for name, value in vars(layers).items() if inspect.isclass(value)}
    assert set(LAYERS) == public - {"Module", "Sequential", "Stateless"}
    for name, arguments in FUNCTIONS.items():
        if name != "einsum":
            assert set(inspect.signature(getattr(F, name)).parameters) == set(arguments), name
    for name, arguments in LAYERS.items():
        if not issubclass(getattr(layers, name), layers.Stateless):
            taken = set(inspect.signature(getattr(layers, name).__init__).parameters)
            assert taken - {"self", "middle", "options"} == set(arguments), name


@every_call
def test_the_good_call_is_taken(name):
    call, arguments = TABLES[name]
    call(name, good(arguments))


@every_call
def test_each_wrong_value_alone(name):
    call, arguments = TABLES[name]
    faults = []
    for argument, (_, kind) in arguments.items():
        for value in WRONG[kind]:
            faults.append(refused(name, call, {**good(arguments), argument: value}, [argument]))
    assert not "\n".join(filter(None, faults))


def test_several_wrong_values_drawn():
    """Two or three wrong values at once, by position and by name, among Variables and plain arrays."""
    rng = np.random.default_rng(0)
    faults, names = [], [name for name, (_, arguments) in TABLES.items() if arguments]
    for _ in range(CALLS):
        name = names[rng.integers(len(names))]
        call, arguments = TABLES[name]
        count = min(len(arguments), rng.integers(1, 4))
        chosen = rng.choice(list(arguments), count, replace=False).tolist()
        given = good(arguments)
        for argument, value in given.items():
            if (
                name in FUNCTIONS
                and isinstance(value, np.ndarray)
                and value.dtype == float
                and rng.random() < 0.3
            ):
                given[argument] = Variable(value)
        for argument in chosen:
            values = WRONG[arguments[argument][1]]
            given[argument] = values[rng.integers(len(values))]
        faults.append(refused(name, call, given, chosen))
    assert len(faults) == CALLS
    assert not "\n".join(filter(None, faults))


@every_call
def test_missing_and_unknown_arguments(name):
    call, arguments = TABLES[name]
    if name == "einsum":
        return
    given = good(arguments)
    assert not refused(name, call, {**given, "nonsense": 1}, ["nonsense"])
    own = getattr(F, name) if name in FUNCTIONS else getattr(layers, name).__init__
    needed = [n for n, p in inspect.signature(own).parameters.items() if p.default is p.empty and n in given]
    for argument in needed:
        rest = {n: v for n, v in given.items() if n != argument}
        assert not refused(name, call, rest, [argument])
    if name in FUNCTIONS:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}(: |\(\))"):
            getattr(F, name)(*[1] * 20)


@pytest.mark.parametrize("name", LAYER_TABLE)
def test_wrong_inputs_of_layers(name):
    """What a layer is called with is refused by it, or by the first function that it hands it to."""
    layer, shapes, _ = LAYER_TABLE[name]
    inputs = [array(*shape) for shape in shapes]
    for place in range(len(inputs)):
        for value in NO_ARRAYS:
            if value is None and place:
                continue
            given = [value if i == place else x for i, x in enumerate(inputs)]
            with pytest.raises((TypeError, ValueError), match=r"^\w+: .*\b(x|guide|low|filters)\b"):
                layer(*given)


@pytest.mark.parametrize("name", LAYER_TABLE)
def test_one_error_for_inputs_of_another_dtype(name):
    """Parameters decide: float32 into a layer of float64 is one TypeError everywhere; integers are taken."""
    layer, shapes, _ = LAYER_TABLE[name]
    inputs = [np.ones(shape) for shape in shapes]
    with dynarray.use_backend("reference"):
        expected = layer(*inputs)
        if not layer.parameters():
            return
        for place in range(len(inputs)):
            given = [x.astype(np.float32) if i == place else x for i, x in enumerate(inputs)]
            with pytest.raises(TypeError, match=r"^\w+: \w+ has dtype float32 but \w+ has float64$"):
                layer(*given)
        for kind in (np.uint8, np.int64, bool):
            found = layer(*[x.astype(kind) for x in inputs])
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.data, expected.data)
        listed = layer(*[x.tolist() for x in inputs])
        np.testing.assert_array_equal(listed.data, expected.data)
