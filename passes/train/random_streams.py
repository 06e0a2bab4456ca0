"""Random streams: training and the data each draw from their own, and the caller's generators never notice."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomStream:
    """The global generators of torch (CPU and CUDA), numpy and Python, seeded by numbers, while it is `active`.

    Batches are drawn from another stream than dropout, so a batch depends on its place in the epoch alone and can be
    drawn again after an interrupt, however many were prefetched.
    """

    def __init__(self, *seeds: int):
        outer = _states()
        _seed(derived_seed(*seeds))
        self._saved = _states()
        _restore(outer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this stream; it goes on where it was left the last time."""
        outer = _states()
        _restore(self._saved)
        try:
            yield
        finally:
            self._saved = _states()
            _restore(outer)


def derived_seed(*seeds: int) -> int:
    """One 32-bit seed made of several numbers: 0 with 1 and 1 with 0 have nothing in common."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def torch_states() -> dict[str, torch.Tensor]:
    """The state of torch's generators as uint8 tensors: `cpu`, `cuda.0`, ..."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda.{i}": state for i, state in enumerate(cuda)}}


def set_torch_states(states: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name != "cpu":
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda.")))


def _states() -> tuple[Any, ...]:
    return torch_states(), np.random.get_state(), random.getstate()


def _restore(states: tuple[Any, ...]) -> None:
    of_torch, of_numpy, of_python = states
    set_torch_states(of_torch)
    np.random.set_state(of_numpy)
    random.setstate(of_python)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
