"""The files that a configuration names: found beside it, and looked into before anything starts.

A check changes nothing on the disk. What may not be looked at counts as not there, which pathlib
would raise for.
"""

from __future__ import annotations

import os.path
import ssl
from pathlib import Path

from cortex_core.config.loader import ConfigError

__all__ = ["beside", "check_certificate", "check_file", "check_folder", "check_token", "read_token"]


def beside(config: Path | None, path: str | None) -> str | None:
    """A relative `path` is meant from the folder of the file that says it; without such a file,
    from the current one."""
    return path if config is None or path is None else str(config.parent / path)


def check_file(path: str | None, source: str, key: str) -> None:
    """None is fine. Raises ConfigError."""
    if path is not None and not os.path.isfile(path):
        raise ConfigError(source, key, f"no such file: {path}")


def check_token(path: str | None, source: str, key: str) -> None:
    """None is fine. Raises ConfigError."""
    check_file(path, source, key)
    try:
        if path is not None:
            read_token(path)
    except ConfigError as error:
        raise ConfigError(source, key, str(error)) from None


def read_token(path: str) -> str:
    """The one line of a file that holds a bearer token. Raises ConfigError."""
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, None, f"cannot be read: {error}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(path, None, "expected one line with a bearer token")
    return token


def check_certificate(certificate: str, private_key: str, source: str, key: str) -> None:
    """Raises ConfigError where the two (PEM) cannot be served with."""
    try:
        # An encrypted key would be asked for on a terminal; an empty passphrase fails instead.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            certificate, private_key, password=""
        )
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or str(error)
        problem = f"cannot use {certificate} and {private_key}: {why}"
        raise ConfigError(source, key, problem) from None


def check_folder(path: str | None, source: str, key: str) -> None:
    """A folder, or one that could be made; None is fine. Raises ConfigError."""
    if path is None:
        return
    there = next(p for p in (Path(path), *Path(path).absolute().parents) if os.path.exists(p))
    if not there.is_dir():
        raise ConfigError(source, key, f"{there} is no folder")
