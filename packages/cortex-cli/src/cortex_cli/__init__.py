"""The `cortex` command: starts the parts of cortex and talks to them over HTTP, nothing else."""

__version__ = "0.1.0"
