"""Configuration: strict types and the one loader that gateway, neuron and CLI share."""
