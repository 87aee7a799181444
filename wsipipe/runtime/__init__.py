"""Where and how work runs: device, executors, locks, atomic files, progress, ledger."""
