"""cortex_gateway"""

__version__ = "0.1.0"
