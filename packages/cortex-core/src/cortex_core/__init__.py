"""Types, contracts and pure decisions shared by every part of cortex.

This package never does HTTP, asyncio or subprocess work and has no clock of its own: callers pass
events and times in, and carry decisions out.
"""

__version__ = "0.1.0"
