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
    """The processes of one training under torchrun; this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """The part of a list that this process works on."""
        return slice(self.rank, None, self.size)

    def broadcast(self, answer: bool) -> bool:
        """The answer of the main process, in every process."""
        if self.size == 1:
            return answer
        answers = [answer]
        torch.distributed.broadcast_object_list(answers, src=0)
        return answers[0]

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            torch.distributed.barrier()

    def distribute(self, model: nn.Module) -> nn.Module:
        """`model`, with gradients averaged over the processes at every step."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model)


def join_group(on: torch.device) -> ProcessGroup:
    """Join the group that torchrun started; without torchrun, a group of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo" if on.type == "cpu" else "nccl")
    return ProcessGroup(torch.distributed.get_rank(), torch.distributed.get_world_size())
