"""As much of torch as llmcore touches, so that its tests need no torch.

llmcore takes tensors in (`detach`, `cpu`, `numpy`) and hands tensors out (`from_numpy`), nothing else.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np


class Tensor:
    def __init__(self, array: np.ndarray, *, graph: bool = False) -> None:
        self.array, self.graph = array, graph

    def detach(self) -> Tensor:
        return Tensor(self.array)

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        assert not self.graph, "torch refuses this for a tensor that needs a gradient"
        return self.array

    def __iter__(self):
        return (Tensor(row) for row in self.array)

    def __len__(self) -> int:
        return len(self.array)


def fake_torch() -> ModuleType:
    module = ModuleType("torch")
    module.Tensor, module.from_numpy = Tensor, Tensor
    return module
