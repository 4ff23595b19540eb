"""Models by `org/name[:QUANT]`: what of a hub is on this disk, and what the hub says it has.

Everything here blocks, on the disk or on the network, and is called on a thread. Downloading is
`fetching`'s affair. The layout of the cache is that of huggingface_hub, shared with other programs.
"""

from __future__ import annotations

import difflib
import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cortex_core.config.neuron import HubSource
from cortex_core.errors import (
    CortexError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    PreflightFailed,
    RateLimitExceeded,
    UpstreamFailed,
)
from neuron import logs
from neuron.models.gguf import GgufHeader, read_header
from neuron.models.quants import choose, tags_of, whole_models

__all__ = ["FetchOrder", "Hub", "HubModel", "failures_of", "token_of"]

_log = logs.get(__name__)
_TIMEOUT_S = 10.0  # to connect, and for the next bytes
_FIRST_RANGE_BYTES = 2 << 20
_MOST_HEADERS = 64
_MOST_LISTED = 200
_REVISION = "main"

Near = Callable[[], list[str]]


class FetchOrder(msgspec.Struct, frozen=True):
    """What the process that downloads is told. `files` are the parts of one model, in order, with
    their sizes; `label` is how errors call the hub."""

    label: str
    endpoint: str | None
    token: str | None
    cache_dir: str
    repo: str
    commit: str
    files: list[tuple[str, int]]

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)


class HubModel:
    """A model that a hub has and this disk has not."""

    def __init__(self, hub: Hub, order: FetchOrder) -> None:
        self._hub = hub
        self.order = order

    def header(self) -> GgufHeader:
        """Read by ranges, without the weights. Raises as `Hub.find`, or PreflightFailed of the
        file."""
        return self._hub.header(self.order)

    def check_disk(self) -> None:
        """Raises PreflightFailed (insufficient_disk)."""
        self._hub.check_disk(self.order)


class Hub:
    """One source of models."""

    def __init__(self, source: HubSource, *, is_offline: bool = False) -> None:
        from huggingface_hub import constants

        self.name = source.name
        self._endpoint = source.endpoint.rstrip("/") if source.endpoint else None
        self._token_file = source.token_file
        self._cache_dir = Path(source.cache_dir or constants.HF_HUB_CACHE).expanduser()
        self._is_offline = is_offline or constants.HF_HUB_OFFLINE
        self._label = f"the hub {self.name!r} ({self._endpoint or constants.ENDPOINT})"
        self._headers: dict[tuple[str, str, str], GgufHeader] = {}
        self._lock = threading.Lock()

    def cached(self, repo: str, tag: str | None) -> Path | None:
        """The first file of a model all of whose files are on this disk. No network."""
        for snapshot in self._snapshots(repo):
            first = choose(self._models_in(snapshot), tag)
            if first is not None:
                return snapshot / first
        return None

    def known(self) -> Iterator[str]:
        """`org/name:TAG` of every model on this disk."""
        for folder in sorted(self._cache_dir.glob("models--*--*")):
            _, owner, name = folder.name.split("--", 2)
            tags = {
                tag
                for snapshot in self._snapshots(f"{owner}/{name}")
                for tag in tags_of(self._models_in(snapshot))
            }
            yield from (f"{owner}/{name}:{tag}" for tag in sorted(tags))

    def find(self, repo: str, tag: str | None) -> HubModel:
        """What the hub has by that name. Raises ModelNotFound, Forbidden, InvalidRequest,
        RateLimitExceeded or UpstreamFailed."""
        if self._is_offline:
            raise ModelNotFound(
                f"{_id(repo, tag)}: is not in the cache of {self._label}, and the neuron is "
                "offline (models.offline)",
                param="model",
            )
        from huggingface_hub import HfApi

        with failures_of(self._label, repo, near=lambda: self._near(repo)):
            info = HfApi(self._endpoint, token=self._token).model_info(
                repo, revision=_REVISION, files_metadata=True, timeout=_TIMEOUT_S
            )
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        models = whole_models(sizes)
        first = choose(models, tag)
        if first is None:
            raise self._no_such_quant(repo, tag, list(models))
        files = [(name, sizes[name] or 0) for name in models[first]]
        if info.sha is None or not all(size for _, size in files):
            raise UpstreamFailed(f"{repo}: {self._label} does not say how large its files are")
        return HubModel(
            self,
            FetchOrder(
                self._label,
                self._endpoint,
                self._own_token,
                str(self._cache_dir),
                repo,
                info.sha,
                files,
            ),
        )

    def header(self, order: FetchOrder) -> GgufHeader:
        """See `HubModel.header`. A commit never changes, so what was read once is remembered."""
        first = order.files[0][0]
        key = (order.repo, order.commit, first)
        with self._lock:
            known = self._headers.get(key)
        if known is not None:
            return known
        sizes = dict(order.files)

        @contextmanager
        def open_part(path: Path) -> Iterator[tuple[_Ranges, int]]:
            yield _Ranges(order, path.as_posix(), self._request_headers()), sizes[path.as_posix()]

        header = read_header(Path(first), open_part)
        with self._lock:
            if len(self._headers) >= _MOST_HEADERS:
                self._headers.pop(next(iter(self._headers)))
            self._headers[key] = header
        return header

    def check_disk(self, order: FetchOrder) -> None:
        """See `HubModel.check_disk`."""
        folder = self._cache_dir
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise PreflightFailed(
                f"{order.repo}: the cache {self._cache_dir} cannot be used: {error}",
                kind="insufficient_disk",
                param="model",
            ) from None
        if order.total_bytes > free:
            raise PreflightFailed(
                f"{order.repo}: needs {order.total_bytes >> 20:,} MiB of disk, and "
                f"{self._cache_dir} has {free >> 20:,} MiB free",
                kind="insufficient_disk",
                param="model",
            )

    # the disk

    def _snapshots(self, repo: str) -> list[Path]:
        """The commits of a repo of which there are files, the one that `main` was last first, then
        the youngest."""
        folder = self._cache_dir / f"models--{repo.replace('/', '--')}"
        try:
            main = (folder / "refs" / _REVISION).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            main = ""
        try:
            found = [(s.name != main, -s.stat().st_mtime, s) for s in folder.glob("snapshots/*")]
        except OSError:  # another program is tidying up
            return []
        return [snapshot for *_, snapshot in sorted(found)]

    @staticmethod
    def _models_in(snapshot: Path) -> dict[str, list[str]]:
        # A file is linked here once all of it has come; a link that leads nowhere is none.
        files = (path for path in snapshot.rglob("*.gguf") if path.is_file())
        return whole_models(path.relative_to(snapshot).as_posix() for path in files)

    # the network

    @property
    def _own_token(self) -> str | None:
        """Read each time: tokens are renewed. Raises Forbidden."""
        if self._token_file is None:
            return None
        try:
            return Path(self._token_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Forbidden(f"the token of {self._label} cannot be read: {error}") from None

    @property
    def _token(self) -> str | bool | None:
        return token_of(self._endpoint, self._own_token)

    def _request_headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        return build_hf_headers(token=self._token) | {"accept-encoding": "identity"}

    def _near(self, repo: str) -> list[str]:
        """Ids of the same owner, for an error that helps; none where the hub does not answer."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        owner = repo.partition("/")[0]
        try:
            response = get_session().get(
                f"{self._endpoint or constants.ENDPOINT}/api/models",
                params={"author": owner, "limit": _MOST_LISTED},
                headers=self._request_headers(),
                timeout=_TIMEOUT_S,
            )
            found = msgspec.json.decode(response.content, type=list[_Listed])
        except Exception as error:  # a network's; nothing here is worth failing for
            _log.debug("no near names", hub=self.name, cause=str(error))
            return []
        return [listed.id for listed in found]

    def _no_such_quant(self, repo: str, tag: str | None, firsts: list[str]) -> ModelNotFound:
        if not firsts:
            text = f"{_id(repo, tag)}: the repo has no GGUF files at {self._label}"
        else:
            has = ", ".join(tags_of(firsts))
            text = f"{_id(repo, tag)}: {self._label} has {has} in this repo, not {tag}"
        return ModelNotFound(text, param="model")


class _Listed(msgspec.Struct):
    id: str


class _Ranges:
    """A file of a hub, as far as it is looked at. Each request asks for twice what the last did."""

    def __init__(self, order: FetchOrder, name: str, headers: dict[str, str]) -> None:
        self._order = order
        self._name = name
        self._headers = headers
        self._at = 0
        self._window = b""
        self._window_at = 0
        self._next_bytes = _FIRST_RANGE_BYTES

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, size: int) -> bytes:
        start = self._at - self._window_at
        if not 0 <= start < len(self._window):
            with failures_of(self._order.label, self._order.repo):
                self._window, self._window_at, start = self._fetch(size), self._at, 0
        data = self._window[start : start + size]
        self._at += len(data)
        return data

    def _fetch(self, size: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import get_session, hf_raise_for_status

        order = self._order
        url = hf_hub_url(order.repo, self._name, revision=order.commit, endpoint=order.endpoint)
        wanted = max(size, self._next_bytes)
        self._next_bytes *= 2
        last = self._at + wanted - 1
        headers = self._headers | {"range": f"bytes={self._at}-{last}"}
        with get_session().stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            # A server that knows no ranges sends the whole file; no more of it is read than needed.
            skipped = 0 if response.status_code == 206 else self._at
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= skipped + wanted:
                    break
        return bytes(data[skipped : skipped + wanted])


def token_of(endpoint: str | None, own: str | None) -> str | bool | None:
    """What huggingface_hub is to send. The token that it finds by itself (HF_TOKEN, a login) is the
    public hub's: another endpoint never sees it."""
    if own is not None:
        return own
    return None if endpoint is None else False


@contextmanager
def failures_of(label: str, repo: str, near: Near | None = None) -> Iterator[None]:
    """Whatever huggingface_hub raises, as an error of ours. `near()` gives names for one that says
    there is no such repo."""
    try:
        yield
    except CortexError:
        raise
    except Exception as error:
        raise _typed(label, repo, error, near) from error


def _typed(label: str, repo: str, error: Exception, near: Near | None) -> CortexError:
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    if isinstance(cause, Exception):
        return _typed(label, repo, cause, near)
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return InvalidRequest(f"model: {repo!r} is no id of a hub: {error}", param="model")
    if status in (401, 403) or isinstance(error, errors.GatedRepoError):
        return Forbidden(
            f"{repo}: {label} does not let this neuron read it ({status}): it does not exist, or "
            "asks for a token that may (models.sources.token_file)",
            param="model",
        )
    if status == 404:
        return ModelNotFound(f"{repo}: is not at {label}{_hint(repo, near)}", param="model")
    if status == 429:
        return RateLimitExceeded(f"{repo}: {label} is asked too often")
    if status is not None:
        return UpstreamFailed(f"{repo}: {label} answers with {status}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PreflightFailed(
            f"{repo}: the disk is full: {error}", kind="insufficient_disk", param="model"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return PreflightFailed(
            f"{repo}: cannot be stored: {error}", kind="gguf_unreadable", param="model"
        )
    _log.warning("hub failed", hub=label, repo=repo, kind=type(error).__name__, cause=str(error))
    return UpstreamFailed(f"{repo}: {label} cannot be read: {type(error).__name__}: {error}")


def _id(repo: str, tag: str | None) -> str:
    return repo if tag is None else f"{repo}:{tag}"


def _hint(repo: str, near: Near | None) -> str:
    found = difflib.get_close_matches(repo, near() if near else [], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
