"""Any operator as a function of JAX arrays, with its gradient, also inside of `jax.jit`.

`jax.pure_callback` leaves the compiled program for the operator, and `jax.custom_vjp` says which backward
pass belongs to it. JAX hands arrays over in the memory of the machine; they are read there by DLPack.

    python examples/interop/jax_vjp.py

needs JAX (the extra `interop`). It takes a compiled gradient, and learns a filter for every pixel of a scene.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dynarray as dyn


def _struct(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _output_shape(operator: dyn.Operator, arrays: tuple[Any, ...], params: dict[str, Any]) -> tuple[int, ...]:
    """What the operator's check announces, which looks at shapes and dtypes and not at values."""
    stands_for = [None if a is None else np.broadcast_to(np.ones((), a.dtype), a.shape) for a in arrays]
    return operator.check(*stands_for, **{**operator.defaults, **params}).output_shape


def differentiable(name: str, **params: Any) -> Callable[..., jax.Array]:
    """The operator `name` with its parameters, as a function of its arrays in order (None: left out)."""
    operator = dyn.OPERATORS[name]
    backward_pass = getattr(dyn, f"{name}_backward")

    def run(*arrays: Any) -> np.ndarray:
        positional, by_keyword = operator.arguments(arrays)
        return operator.function(*positional, **by_keyword, **params)

    def run_backward(grad: Any, *arrays: Any) -> tuple[Any, ...]:
        positional, by_keyword = operator.arguments(arrays)
        return tuple(backward_pass(grad, *positional, **by_keyword, **params))

    @jax.custom_vjp
    def apply(*arrays: Any) -> jax.Array:
        result = jax.ShapeDtypeStruct(_output_shape(operator, arrays, params), arrays[0].dtype)
        return jax.pure_callback(run, result, *arrays)

    def forward(*arrays: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        return apply(*arrays), arrays

    def backward(arrays: tuple[Any, ...], grad: jax.Array) -> tuple[Any, ...]:
        results = tuple(jax.tree.map(_struct, arrays))
        return jax.pure_callback(run_backward, results, grad, *arrays)

    apply.defvjp(forward, backward)

    def called(*arrays: Any) -> jax.Array:
        missing = (None,) * (len(operator.arrays) - len(arrays))
        defaults = inspect.signature(operator.function).parameters
        filled = [defaults[n].default for n in operator.arrays[len(arrays) :]] if missing else []
        like = jnp.asarray(arrays[0])
        given = [jnp.asarray(a, like.dtype) if isinstance(a, float | int) else a for a in (*arrays, *filled)]
        return apply(*given)

    return called


def main() -> None:
    """A gradient, and learning."""
    local_filter2d = differentiable("local_filter2d")
    rng = np.random.default_rng(0)
    scene = jnp.asarray(rng.standard_normal((1, 1, 16, 16)), "float32")
    goal = jnp.where(jnp.arange(16) < 8, scene, jnp.roll(scene, 1, 2))  # the right half is moved down

    @jax.jit
    def step(filters: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss_of(filters: jax.Array) -> jax.Array:
            return jnp.mean((local_filter2d(scene, filters) - goal) ** 2)

        loss, gradient = jax.value_and_grad(loss_of)(filters)
        return loss, filters - 5 * gradient

    filters = jnp.zeros((1, 1, 3, 3, 16, 16), "float32")
    losses = []
    for _ in range(200):
        loss, filters = step(filters)
        losses.append(float(loss))
    print(f"mean squared error, first and last step: {losses[0]:.3f} {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
