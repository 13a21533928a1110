"""Any operator as a function of PyTorch tensors, with its gradient.

Tensors are handed over by DLPack, in place: on the CPU as NumPy arrays, on a GPU as CuPy's. PyTorch calls the
operator's own backward pass. Gradients of gradients are refused: take them on the tape of `autodiff`.

    python examples/interop/torch_function.py

needs PyTorch (the extra `interop`). It checks one operator against differences, and learns a filter for every
pixel of a scene by PyTorch's Adam.
"""

import inspect
from typing import Any

import torch

import dynarray as dyn


class OperatorFunction(torch.autograd.Function):
    """One call of an operator, which PyTorch's graph contains."""

    @staticmethod
    def forward(ctx: Any, name: str, params: dict[str, Any], *tensors: torch.Tensor | None) -> torch.Tensor:
        """The output of the operator, in PyTorch's hands."""
        ctx.name, ctx.params = name, params
        ctx.save_for_backward(*tensors)  # PyTorch then sees when one is overwritten
        operator = dyn.OPERATORS[name]
        detached = tuple(None if tensor is None else tensor.detach() for tensor in tensors)
        positional, by_keyword = operator.arguments(detached)
        return torch.from_dlpack(operator.function(*positional, **by_keyword, **params))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """One gradient for each argument of `forward`, None where PyTorch needs none."""
        operator, needs = dyn.OPERATORS[ctx.name], ctx.needs_input_grad[2:]
        detached = tuple(None if tensor is None else tensor.detach() for tensor in ctx.saved_tensors)
        positional, by_keyword = operator.arguments(detached)
        backward = getattr(dyn, f"{ctx.name}_backward")
        found = backward(grad_output, *positional, **by_keyword, **ctx.params, needs=needs)
        return None, None, *(None if each is None else torch.from_dlpack(each) for each in found)


def call(name: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The operator `name` of dynarray, its arrays being tensors; all else is as with NumPy."""
    operator = dyn.OPERATORS[name]
    bound = inspect.signature(operator.function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    tensors = [given.pop(argument) for argument in operator.arrays]
    # Numbers that could be arrays too, as a width that may be learned.
    like = next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
    tensors = [torch.as_tensor(t).to(like) if isinstance(t, float | int) else t for t in tensors]
    result: torch.Tensor = OperatorFunction.apply(name, given, *tensors)
    return result


def main() -> None:
    """Check, and learn."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    right = torch.autograd.gradcheck(lambda *arrays: call("local_filter2d", *arrays), (x, weight))
    print(f"gradients of local_filter2d agree with differences: {right}")

    scene = torch.randn(1, 1, 16, 16)
    goal = torch.where(torch.arange(16) < 8, scene, scene.roll(1, 2))  # the right half is moved down
    filters = torch.zeros(1, 1, 3, 3, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam([filters], 0.05)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(call("local_filter2d", scene, filters), goal)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"mean squared error, first and last step: {losses[0]:.3f} {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
