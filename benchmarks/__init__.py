"""Speed and quality of the library, measured: ``python -m benchmarks.run``."""
