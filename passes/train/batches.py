"""The batches of an epoch: checked, shared out among processes, and the same ones again after an interrupt."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ..base import Context
from .processes import Processes
from .random_streams import RandomStream, derived_seed

DATA_STREAM = 1  # the number that keeps the stream of the data apart from that of the model


@dataclass(frozen=True)
class Batch:
    """The model's inputs, on the device that trains, and the labels; None where no labels are needed."""

    inputs: tuple[torch.Tensor, ...]
    labels: Any


class Epochs:
    """The data, epoch by epoch. What an epoch holds and in which order depends on the seed and its number alone.

    length  batches of one epoch for this process; None where the loader has no length
    """

    def __init__(self, graph: Graph, ctx: Context, processes: Processes, *, seed: int, labelled: bool, where: str):
        self.graph, self.processes, self.seed, self.labelled, self.where = graph, processes, seed, labelled, where
        if ctx.data is None:
            raise UsageError(where, "no data was given", "pass data=loader")
        self._generators = {generator: generator.get_state() for generator in _generators(ctx.data)}
        self._samplers = [(h, h.sampler) for h in _holders(ctx.data) if h is not ctx.data and hasattr(h, "sampler")]
        self._ctx = dataclasses.replace(ctx, data=processes.shard(ctx.data))
        self.length = _length(self._ctx.data)

    def read(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0) after the first `skip`. Drawing them touches no generator of the model's.

        Raises UsageError for bad batches, as `Context.labelled_batches` does, and for fewer than `skip` of them.
        """
        place = f"{self.where}, epoch {epoch + 1}"
        stream = RandomStream(self.seed, DATA_STREAM, epoch, self.processes.rank)
        self._reseed(epoch)
        batches = self._checked(place)
        for count in itertools.count():
            with stream.active():
                batch = next(batches, None)
            if batch is None:
                if count < skip:
                    what = f"the loader gave {count} batches, the checkpoint has seen {skip} of this epoch"
                    raise UsageError(place, what, "resume with the data that the run was started with")
                return
            if count >= skip:
                yield _moved(batch, self.processes.device)

    def release(self) -> None:
        """The caller's loader is as it was: accelerate puts its own sampler into it, epochs seed its generators."""
        for holder, sampler in self._samplers:
            holder.sampler = sampler
        for generator, state in self._generators.items():
            generator.set_state(state)

    def _checked(self, place: str) -> Iterator[Batch]:
        if self.labelled:
            return (Batch(*pair) for pair in self._ctx.labelled_batches(self.graph, place))
        return (Batch(inputs, None) for inputs in self._ctx.batches(self.graph, place))

    def _reseed(self, epoch: int) -> None:
        """Generators that the loader holds start anew; all processes shuffle alike."""
        for generator in self._generators:
            generator.manual_seed(derived_seed(self.seed, epoch))
        set_epoch = getattr(self._ctx.data, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches each; the last one may be shorter."""
    remaining = iter(batches)
    while window := list(itertools.islice(remaining, size)):
        yield window


class Counted:
    """An iterator with a length, for progress bars."""

    def __init__(self, items: Iterable, length: int):
        self._items, self._length = items, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return self._length


def _holders(data: Any) -> list[Any]:
    """A DataLoader and the samplers in it, whatever of it there is."""
    batch_sampler = getattr(data, "batch_sampler", None)
    found = (data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return [holder for holder in found if holder is not None]


def _generators(data: Any) -> list[torch.Generator]:
    """What a DataLoader and its samplers draw from."""
    found = [getattr(holder, "generator", None) for holder in _holders(data)]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _length(data: Any) -> int | None:
    if isinstance(data, torch.Tensor):
        return 1
    try:
        return len(data)
    except TypeError:  # an iterator, or a loader over a stream
        return None


def _moved(batch: Batch, device: torch.device) -> Batch:
    inputs, labels = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), (batch.inputs, batch.labels))
    return Batch(inputs, labels)
