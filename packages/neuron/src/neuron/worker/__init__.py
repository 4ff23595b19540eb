"""The worker process: the only part of the project that runs llama.cpp.

`python -m neuron.worker --fd N --device ID`, started by the supervisor; speaks
`cortex_core.wire.ipc` over the inherited socket and dies with its parent.
"""
