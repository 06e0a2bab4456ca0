"""The processes of a training run, through accelerate: one, or as many as `torchrun` started on any machines."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...ir.errors import UsageError
from ...ir.graph import Graph


class Processes:
    """This process among those that train together. Gradients are averaged by DistributedDataParallel.

    count   how many there are           rank     the number of this one, from 0
    device  where this process trains: the CPU for a graph whose weights are there, else its own GPU
    """

    def __init__(self, graph: Graph, seed: int, where: str):
        accelerate = _import_accelerate(where)
        on_cpu = all(weight.device.type == "cpu" for weight in graph.weights.values())
        self._accelerator = accelerate.Accelerator(
            cpu=on_cpu,
            dataloader_config=accelerate.DataLoaderConfiguration(
                dispatch_batches=False, use_seedable_sampler=True, data_seed=seed
            ),
            # Running statistics are averaged by `average`; a loss may leave some of the weights without a gradient.
            kwargs_handlers=[
                accelerate.DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
            ],
        )
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.device: torch.device = self._accelerator.device

    @property
    def is_main(self) -> bool:
        return self._accelerator.is_main_process

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module such that its gradients are averaged over all processes."""
        if self.count == 1:
            return module
        with warnings.catch_warnings():  # torch renames `broadcast_buffers`, accelerate knows the old name only
            warnings.simplefilter("ignore", FutureWarning)
            return self._accelerator.prepare_model(module)

    def unsynchronized(self, module: torch.nn.Module) -> AbstractContextManager:
        """Gradients of the backward passes inside are kept here, to be averaged with those of a later one."""
        return self._accelerator.no_sync(module) if self.count > 1 else nullcontext()

    def shard(self, data: Any) -> Any:
        """This process's own batches: a DataLoader's through accelerate, of anything else every `count`-th one."""
        if isinstance(data, torch.utils.data.DataLoader):
            return self._accelerator.prepare_data_loader(data, device_placement=False)
        return data if self.count == 1 else EveryNth(data, self.count, self.rank)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        return self._accelerator.reduce(value, "mean") if self.count > 1 else value  # type: ignore[return-value]

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace floating-point tensors by their mean over all processes, in place.

        Running statistics are linear in what was seen, so the mean of those that processes kept is what one process
        would have had that normalised the same batches one after the other's share.
        """
        if self.count > 1:
            for tensor in tensors:
                if tensor.is_floating_point():
                    tensor.copy_(self.mean(tensor))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensor of every process, by rank, on the CPU."""
        if self.count == 1:
            return [tensor.cpu()]
        stacked: Any = self._accelerator.gather(tensor.to(self.device)[None])
        return list(stacked.cpu())

    def from_main(self, number: float) -> float:
        """The main process's number, for all."""
        if self.count == 1:
            return number
        numbers = self.gather(torch.tensor(number, dtype=torch.float64))
        return float(numbers[0])

    def agree(self, step: int, where: str) -> None:
        """All processes found the same checkpoint, before one of them writes another. Raises UsageError otherwise."""
        steps = sorted({int(found) for found in self.gather(torch.tensor(step))})
        if len(steps) > 1:
            what = f"some processes found a checkpoint of step {steps[-1]}, others of {max(steps[0], 0)}"
            raise UsageError(where, what, "expected a folder that all machines share")

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()


class EveryNth:
    """Of every `count` batches of an iterable the one at `position`. A last round that is not full is left out, so that
    all processes take as many steps."""

    def __init__(self, data: Iterable, count: int, position: int):
        self.data, self.count, self.position = data, count, position

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.data)
        while len(taken := list(itertools.islice(batches, self.count))) == self.count:
            yield taken[self.position]

    def __len__(self) -> int:
        if not isinstance(self.data, Sized):
            raise TypeError("the data has no length")
        return len(self.data) // self.count


def _import_accelerate(where: str) -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise UsageError(where, "accelerate is not installed", 'run: pip install "planish[train]"') from error
    return accelerate
