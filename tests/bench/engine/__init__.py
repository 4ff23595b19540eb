"""The engine against `llama-server`: `python -m tests.bench.engine`."""
