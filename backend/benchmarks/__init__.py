"""The service measured against what it replaces and what it stands on; `python -m backend.benchmarks --help`."""
