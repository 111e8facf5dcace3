"""Measures the service against a tutorial-style service and the bare driver: `python -m backend.benchmarks --help`."""
