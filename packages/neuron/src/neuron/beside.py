"""What lies beside a model's GGUF: files of the repository that it was made from."""

from __future__ import annotations

from pathlib import Path

from neuron import logs

__all__ = ["read_beside"]

_log = logs.get(__name__)

_MAX_BYTES = 32 * 1024 * 1024  # a tokenizer_config.json of a large vocabulary has a few


def read_beside(model: Path, name: str) -> str | None:
    """The text of the file `name` in the folder of the GGUF at `model`. None where there is none;
    one that cannot be read is passed over with a warning."""
    path = model.parent / name
    try:
        if path.stat().st_size > _MAX_BYTES:
            _log.warning("file passed over: too large", path=path, limit=_MAX_BYTES)
            return None
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _log.warning("file passed over", path=path, cause=error)
        return None
