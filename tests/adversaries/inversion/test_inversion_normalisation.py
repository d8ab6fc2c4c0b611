"""BatchNorm with the second derivative written out, against torch's own and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vjp, vmap

from fedsim.adversaries.inversion.normalisation import normalise

EPS = 1e-3
SHAPES = [(3, 2, 2, 2), (4, 3), (3, 2, 5)]


def drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias in float64."""
    rng = torch.Generator().manual_seed(seed)
    channels = shape[1]
    x = torch.randn(shape, generator=rng, dtype=torch.float64) * 2 + 1
    weight, bias = torch.randn(2, channels, generator=rng, dtype=torch.float64)
    return x, weight, bias


def fixed(channels: int) -> tuple[Tensor, Tensor]:
    """Mean and variance from elsewhere, for up to three channels."""
    mean, variance = torch.tensor([[0.3, -1.1, 0.8], [0.6, 1.4, 0.9]], dtype=torch.float64)
    return mean[:channels], variance[:channels]


def ours(x: Tensor, weight: Tensor, bias: Tensor, own: bool) -> Tensor:
    if not own:
        return normalise(x, *fixed(x.shape[1]), weight, bias, EPS, own=False)
    variance, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], unbiased=False)
    return normalise(x, mean, variance, weight, bias, EPS, own=True)


def of_the_detached(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As ours with own statistics, which no derivative goes through: all of it has to come from the written out one."""
    variance, mean = torch.var_mean(x.detach(), dim=[d for d in range(x.dim()) if d != 1], unbiased=False)
    return normalise(x, mean, variance, weight, bias, EPS, own=True)


def theirs(x: Tensor, weight: Tensor, bias: Tensor, own: bool) -> Tensor:
    mean, variance = fixed(x.shape[1])
    return F.batch_norm(x, mean, variance, weight, bias, training=own, momentum=0.0, eps=EPS)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_differentiates_right_once_and_twice(shape: tuple[int, ...], own: bool) -> None:
    inputs = tuple(value.requires_grad_() for value in drawn(shape))
    function: Callable[..., Tensor] = lambda x, w, b: ours(x, w, b, own)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_batch_norm_with_all_its_derivatives(shape: tuple[int, ...], own: bool) -> None:
    def outcomes(function: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [value.requires_grad_() for value in drawn(shape)]
        y = function(*inputs, own)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype).requires_grad_()
        first = torch.autograd.grad(y, inputs, cotangent, create_graph=True)
        rng = torch.Generator().manual_seed(3)
        along = [torch.randn(value.shape, generator=rng, dtype=y.dtype) for value in first]
        # The bias has no part in the derivatives.
        second = torch.autograd.grad(first, [*inputs[:2], cotangent], along)
        return [value.detach() for value in (y, *first, *second)]

    torch.testing.assert_close(outcomes(ours), outcomes(theirs))


def test_the_statistics_may_be_cut_off_because_their_derivative_is_written_out() -> None:
    inputs = tuple(value.requires_grad_() for value in drawn((3, 2, 2, 2)))
    expected = torch.autograd.grad(theirs(*inputs, True).square().sum(), inputs)
    found = torch.autograd.grad(of_the_detached(*inputs).square().sum(), inputs)
    torch.testing.assert_close(list(found), list(expected))


def test_in_float32_it_is_batch_norm_in_float32() -> None:
    x, weight, bias = (value.float() for value in drawn((16, 8, 9, 9)))
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
    found = normalise(x, mean, variance, weight, bias, 1e-5, own=True)
    torch.testing.assert_close(found, F.batch_norm(x, None, None, weight, bias, training=True))


def inverted(function: Callable[..., Tensor], own: bool) -> Callable[[Tensor], Tensor]:
    """What an attack asks for: the derivative by x of a product with the gradient by the parameters."""
    _, weight, bias = drawn((3, 2, 2, 2))
    along = torch.tensor([0.3, -1.2], dtype=torch.float64)

    def shown(x: Tensor) -> tuple[Tensor, Tensor]:
        return grad(lambda w, b: function(x, w, b, own).tanh().square().sum(), argnums=(0, 1))(weight, bias)

    return lambda x: vjp(shown, x)[1]((along, along.flip(0)))[0]


@pytest.mark.parametrize("own", [True, False])
def test_it_goes_through_the_transforms_that_a_step_is_made_of(own: bool) -> None:
    x = drawn((3, 2, 2, 2))[0]
    torch.testing.assert_close(inverted(ours, own)(x), inverted(theirs, own)(x))


@pytest.mark.parametrize("own", [True, False])
def test_vmapped_it_is_the_same_trial_by_trial(own: bool) -> None:
    stack = torch.stack([drawn((3, 2, 2, 2), seed)[0] for seed in range(3)])
    together = vmap(inverted(ours, own))(stack)
    torch.testing.assert_close(together, torch.stack([inverted(theirs, own)(x) for x in stack]))
