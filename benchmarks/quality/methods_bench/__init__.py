"""The parts of benchmarks/quality/methods.py: data sets, the plan of steps, running them, and the table that comes of it."""
