"""RunContext: what every stage gets beside its inputs and its own options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from wsipipe.config.options import RunConfig
from wsipipe.runtime.device import ComputeContext, device
from wsipipe.runtime.ledger import Report
from wsipipe.runtime.progress import Progress, silent


@dataclass(frozen=True)
class RunContext:
    """The options that all stages share, the progress callback, and whether existing results may be replaced.

    Every stage is called as `run(inputs, options, context)`.
    """

    run: RunConfig = field(default_factory=RunConfig)
    progress: Progress = silent
    overwrite: bool = False

    @property
    def stores(self) -> Path:
        """Folder of the stores."""
        return Path(self.run.stores)

    @property
    def runs(self) -> Path:
        """Folder of fits, checkpoints, ledgers and figures."""
        return Path(self.run.runs)

    def report(self) -> Report:
        """An empty ledger that tolerates as many failures as the options allow."""
        return Report(self.run.max_failed)

    def compute(self) -> ComputeContext:
        """Device, seed and progress for code that computes; ConfigError if there is no such device."""
        return ComputeContext(device(self.run.device), self.run.seed, self.progress)

    def with_progress(self, progress: Progress) -> RunContext:
        """The same context with another progress callback."""
        return replace(self, progress=progress)
