"""The parts of benchmarks/quality/methods.py: data sets, the plan of steps, their execution and the table."""
