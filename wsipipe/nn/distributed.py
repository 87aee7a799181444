"""Several processes that train one network together, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that work together on one training, as torchrun starts them: this is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what all have made."""
        return self.rank == 0

    @property
    def own(self) -> slice:
        """The share of a list that falls to this process."""
        return slice(self.rank, None, self.size)

    def agree(self, answer: bool) -> bool:
        """The answer of the process that leads."""
        if self.size == 1:
            return answer
        told = [answer]
        torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def shared(self, model: nn.Module) -> nn.Module:
        """`model`, its gradients averaged over the processes at every step."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model)


def join_group(on: torch.device) -> ProcessGroup:
    """The group that torchrun has started, joined; a group of one elsewhere."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo" if on.type == "cpu" else "nccl")
    return ProcessGroup(torch.distributed.get_rank(), torch.distributed.get_world_size())
