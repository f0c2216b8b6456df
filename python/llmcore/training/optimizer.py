"""Optimisers over all parameters of a model in one call a step, and averages of the parameters.

    optimizer = AdamW(model, lr=3e-4, weight_decay=0.1, max_grad_norm=1.0)
    model.loss_and_grad(input_ids=...)
    norm = optimizer.step()

Parameters, gradients and the optimiser's state are flat float32 arrays in one order, that of
`model.parameters()`; `arena` lends them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from llmcore import _core
from llmcore.training.model import TrainableModel

__all__ = ["EMA", "NO_DECAY", "SGD", "AdamW", "Optimizer"]

NO_DECAY = ("bias", "norm", "ln_")
"""Parts of the names of what is not decayed unless told otherwise: biases and the weights of norms, which set
a scale and do not multiply rows by a matrix."""


class Optimizer(ABC):
    """What the optimisers share: parameters in groups, clipping, and state in flat arrays.

    Attributes:
        lr: The learning rate of the next step; assign to it.
        step_count: Steps made so far.
        weight_decay: What weights are decayed by, those named in `no_decay` excepted.
        max_grad_norm: Gradients are scaled down so that the norm of all together is at most this (Pascanu et
            al. 2013, as torch's `clip_grad_norm_`); None: they are left as they are.
    """

    def __init__(
        self,
        model: TrainableModel,
        state: Sequence[str],
        *,
        lr: float,
        weight_decay: float,
        no_decay: Sequence[str],
        max_grad_norm: float | None,
    ) -> None:
        _check("lr", lr, 0 <= lr < math.inf, "a number ≥ 0")
        _check("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "a number ≥ 0")
        if max_grad_norm is not None:
            _check("max_grad_norm", max_grad_norm, max_grad_norm > 0, "a number > 0 or None")
        if isinstance(no_decay, str):
            raise TypeError(f"no_decay: found {no_decay!r}, expected a sequence of parts of names")
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.step_count = 0
        self._model = model
        self._groups = _groups(model, weight_decay, no_decay)
        length = _length(model)
        self._state = {name: _core.Flat(length) for name in state}

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the arrays of the state."""
        return tuple(self._state)

    @contextmanager
    def arena(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Lends an array of the state, in the order of the model's parameters: float32, writable, contiguous.
        Steps raise `RuntimeError` meanwhile, and the array is read-only afterwards.

        Raises:
            KeyError: no such state; says what there is.
        """
        if name not in self._state:
            raise KeyError(f"found {name!r}, expected one of {', '.join(self._state)}")
        with _lent(self._state[name]) as flat:
            yield flat

    def step(self) -> float:
        """Clips the gradients, changes the parameters, and returns the norm of the gradients before clipping.
        The model's next `loss_and_grad` begins new gradients.

        Raises:
            FloatingPointError: the norm is not finite; nothing was changed.
            RuntimeError: an array of the model or of the state is lent.
        """
        norm = self._update()
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"optimiser's step {self.step_count + 1}: found gradients whose norm is {norm}, expected a "
                "finite one; no parameter was changed"
            )
        self.step_count += 1
        return norm

    @abstractmethod
    def _update(self) -> float:
        """Makes a step over all groups, unless the norm of the gradients is not finite; gives that norm."""


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    With the gradient g after clipping and t = 1, 2, …

        exp_avg    ← β₁ exp_avg + (1 − β₁) g
        exp_avg_sq ← β₂ exp_avg_sq + (1 − β₂) g²
        m, v       = exp_avg / (1 − β₁ᵗ), exp_avg_sq / (1 − β₂ᵗ)
        weight     ← (1 − lr · weight_decay) weight − lr · m / (√v + eps)

    The arrays of the state are `exp_avg` and `exp_avg_sq`.

    Args:
        model: What is trained.
        lr: The learning rate of the next step; `optimizer.lr` may be assigned to at any time.
        betas: How much of its value each moment keeps in a step, in [0, 1).
        eps: Is added to the divisor.
        weight_decay: See above.
        no_decay: Parameters whose names contain one of these, in any case, are not decayed; () decays all.
        max_grad_norm: The largest norm of all gradients together; None does not clip.

    Raises:
        ValueError: an argument out of range.
        MemoryError: there is no room for the state, twice the parameters in float32.
    """

    def __init__(
        self,
        model: TrainableModel,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        no_decay: Sequence[str] = NO_DECAY,
        max_grad_norm: float | None = None,
    ) -> None:
        beta1, beta2 = betas
        _check("betas", betas, 0 <= beta1 < 1 and 0 <= beta2 < 1, "two numbers in [0, 1)")
        _check("eps", eps, 0 < eps < math.inf, "a number > 0")
        self.betas = (float(beta1), float(beta2))
        self.eps = eps
        super().__init__(
            model,
            ("exp_avg", "exp_avg_sq"),
            lr=lr,
            weight_decay=weight_decay,
            no_decay=no_decay,
            max_grad_norm=max_grad_norm,
        )

    def _update(self) -> float:
        return _core.adamw_step(
            self._model.core,
            self._state["exp_avg"],
            self._state["exp_avg_sq"],
            self._groups,
            self.lr,
            self.betas,
            self.eps,
            self.step_count + 1,
            self.max_grad_norm,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), in PyTorch's form.

    With the gradient g after clipping

        g      ← g + weight_decay · weight
        buffer ← momentum · buffer + g
        weight ← weight − lr · buffer, with Nesterov's form weight − lr · (g + momentum · buffer)

    The array of the state is `momentum_buffer`. Arguments and errors are as those of `AdamW`.

    Args:
        momentum: How much of its value the buffer keeps in a step, in [0, 1).
        nesterov: Looks one step of the momentum ahead.
    """

    def __init__(
        self,
        model: TrainableModel,
        lr: float = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        no_decay: Sequence[str] = NO_DECAY,
        max_grad_norm: float | None = None,
    ) -> None:
        _check("momentum", momentum, 0 <= momentum < 1, "a number in [0, 1)")
        self.momentum = momentum
        self.nesterov = nesterov
        super().__init__(
            model,
            ("momentum_buffer",),
            lr=lr,
            weight_decay=weight_decay,
            no_decay=no_decay,
            max_grad_norm=max_grad_norm,
        )

    def _update(self) -> float:
        return _core.sgd_step(
            self._model.core,
            self._state["momentum_buffer"],
            self._groups,
            self.lr,
            self.momentum,
            self.nesterov,
            self.max_grad_norm,
        )


class EMA:
    """The exponential moving average of the parameters (Polyak and Juditsky 1992), which often generalises
    better than the last ones: after each step `update` makes

        average ← decay · average + (1 − decay) · parameter

    It begins with the parameters as they are.

    Args:
        model: What is trained.
        decay: In [0, 1): the average is over some 1 / (1 − decay) steps.

    Raises:
        ValueError: an argument out of range.
        MemoryError: there is no room for the averages.
    """

    def __init__(self, model: TrainableModel, decay: float = 0.999) -> None:
        _check("decay", decay, 0 <= decay < 1, "a number in [0, 1)")
        self.decay = decay
        self._model = model
        self._groups = _groups(model, 0.0, ())
        self._averages = _core.Flat(_length(model))
        with self.arena() as averages, model.arena("param") as params:
            averages[:] = params

    @contextmanager
    def arena(self) -> Iterator[NDArray[np.float32]]:
        """Lends the averages, in the order of the model's parameters: float32, writable, contiguous."""
        with _lent(self._averages) as flat:
            yield flat

    def update(self) -> None:
        """Moves the averages towards the parameters. Call it after each step of the optimiser."""
        _core.ema_update(self._model.core, self._averages, self._groups, self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model has the averages as its parameters, to evaluate, sample or save with; afterwards
        its own again. Nothing may be trained inside."""
        _core.ema_swap(self._model.core, self._averages)
        try:
            yield
        finally:
            _core.ema_swap(self._model.core, self._averages)


def _groups(
    model: TrainableModel, weight_decay: float, no_decay: Sequence[str]
) -> list[tuple[int, int, float]]:
    """The ranges of the parameters that are trained, each with its decay; neighbours of one decay are one."""
    parts = [part.lower() for part in no_decay]
    groups: list[tuple[int, int, float]] = []
    for tensor in sorted(model.parameters(), key=lambda tensor: tensor.start):
        if not tensor.trained:
            continue
        decay = 0.0 if any(part in tensor.name.lower() for part in parts) else weight_decay
        start, end = tensor.start, tensor.start + math.prod(tensor.shape)
        if groups and groups[-1][1:] == (start, decay):
            start = groups.pop()[0]
        groups.append((start, end, decay))
    return groups


def _length(model: TrainableModel) -> int:
    with model.arena("param") as params:
        return len(params)


@contextmanager
def _lent(flat: _core.Flat) -> Iterator[NDArray[np.float32]]:
    array = flat.lend()
    try:
        yield array
    finally:
        flat.give_back()


def _check(name: str, found: object, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{name}: found {found!r}, expected {expected}")
