"""The gateway's overhead: requests per second, added TTFT, inter-token gap, memory, in one run."""
