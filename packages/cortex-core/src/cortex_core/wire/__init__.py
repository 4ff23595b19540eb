"""Wire formats: frames between neuron and worker, and server-sent events."""
