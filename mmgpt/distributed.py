"""Training in several processes: torchrun starts them, each takes its share of every step, all keep the same weights.

A step's gradients are a sum over its samples, so it does not matter which rank adds which part: every rank runs only
the encoders that its own samples need, and gradients are summed when all have gone through the model. Nothing is
exchanged inside forward or backward, where a rank without a sound would leave the others waiting at the audio encoder.
A parameter that no rank touched keeps no gradient, as in one process, so that optimizers pass over it.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmgpt.config import UserError
from mmgpt.processor import pick_device

BUCKET_BYTES = 64 * 2**20  # gradients that travel together: few messages, little memory besides
Value = TypeVar("Value")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training as one of them sees them; by default it is the only one, and nothing is exchanged."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and tells what happens."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, number by number."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """True if it is true on any rank."""
        return self.sum([flag])[0] > 0

    def gather(self, value: Value) -> list[Value]:
        """What each rank holds, in their order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank the first error that any of them holds."""
        for found in self.gather(error):
            if found is not None:
                raise found

    def on_main(self, work: Callable[[], None]) -> None:
        """Do something in the main process while the others wait for its end; what it cannot do stops them all."""
        error: Exception | None = None
        if self.is_main:
            try:
                work()
            except (UserError, OSError) as found:
                error = found
        self.raise_together(error)

    def broadcast_weights(self, model: nn.Module) -> None:
        """Give every rank the main process's weights: a difference would never be noticed, and never heal."""
        for value in model.state_dict().values() if self.world_size > 1 else ():
            dist.broadcast(value, src=0)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the ranks; a rank without one that another has adds zeros."""
        if self.world_size == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        holders = self.sum([parameter.grad is not None for parameter in learning])
        gradients = []
        for parameter, count in zip(learning, holders, strict=True):
            if count:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))


SINGLE_PROCESS = ProcessGroup()


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type, together up to BUCKET_BYTES."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or buckets[-1][0].dtype != tensor.dtype or tensor.nbytes > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(tensor)
        room -= tensor.nbytes
    return buckets


def is_main() -> bool:
    """True unless torchrun started this process as another rank than 0."""
    return rank_and_world_size()[0] == 0


def rank_and_world_size() -> tuple[int, int]:
    """Rank and number of the processes, as torchrun tells them; some clusters set WORLD_SIZE alone, for other ends."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def own_device(device: str) -> torch.device:
    """The device of a choice, as of `pick_device`; of several GPUs the one of this process.

    Raises:
        UserError: if this machine has no such device, or fewer GPUs than processes.
    """
    chosen = pick_device(device)
    return (
        pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        if chosen.type == "cuda" and rank_and_world_size()[1] > 1
        else chosen
    )


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[ProcessGroup]:
    """Meet the processes that torchrun started, on gloo or, where `device` is CUDA, with a GPU each on nccl.

    Raises:
        UserError: if this machine has no such device, or fewer GPUs than processes.
    """
    rank, world_size = rank_and_world_size()
    chosen = own_device(device)
    if world_size == 1:
        yield ProcessGroup(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(rank, world_size, chosen)
    finally:
        dist.destroy_process_group()
