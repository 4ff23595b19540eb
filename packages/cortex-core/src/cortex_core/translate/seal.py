"""Reasoning in an opaque form that a client gives back as it is.

Both vendors have such a thing so that their reasoning stays secret. Here it is no secret; it only
lets a client that was not shown the text, or drops it, return it all the same.
"""

from __future__ import annotations

import base64
import binascii

__all__ = ["opened", "sealed"]

_SEAL = "cortex1:"


def sealed(reasoning: str) -> str:
    return _SEAL + base64.b64encode(reasoning.encode()).decode()


def opened(content: str) -> str:
    """What `sealed` was given; empty for what is not of our making."""
    if not content.startswith(_SEAL):
        return ""
    try:
        return base64.b64decode(content[len(_SEAL) :], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
