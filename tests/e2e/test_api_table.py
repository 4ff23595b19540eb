"""docs/api.md says what becomes of every parameter, and the running servers do just that."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_message_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from cortex_core import errors
from cortex_core.envelopes import (
    anthropic,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    rerank,
)
from tests.e2e.client import TINY, Answer, eventually, fetch, user
from tests.e2e.conftest import Stack, start_stack
from tools.make_gguf import PRESETS, BertShape, make_gguf

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"

Fate = Literal["honoured", "no effect", "rejected"]


class Row(NamedTuple):
    """One line of a table for one route. `name`: the parameter as a path, `max_tokens`."""

    route: str
    label: str
    name: str
    fate: Fate
    code: str | None
    example: dict[str, Any]

    @property
    def parameter(self) -> str:
        return self.name.partition(".")[0]


def _rows() -> Iterator[Row]:
    for section in re.split(r"^##+ ", TEXT, flags=re.MULTILINE):
        heading, _, text = section.partition("\n")
        routes = re.findall(r"`(/\S+)`", heading)
        lines = [line for line in text.splitlines() if routes and line.startswith("| `")]
        for line in lines:
            label, fate, example, _ = (cell.strip() for cell in line[1:-1].split(" | ", 3))
            name = re.match(r"`([\w.]+)`", label)
            assert name, line
            fate, _, code = fate.partition(": ")
            assert fate in ("honoured", "no effect", "rejected"), line
            values = json.loads("{" + example.removeprefix("`").removesuffix("`") + "}")
            for route in routes:
                known = cast("Fate", fate)
                yield Row(route, label, name[1], known, code.strip("`") or None, values)


ROWS = list(_rows())


@dataclass(frozen=True)
class Route:
    """`request` is what decodes the body, `vendors` the types with which the vendors' SDKs word
    it."""

    request: Any
    ignored: Collection[str]
    vendors: tuple[Any, ...]
    body: dict[str, Any]
    model: str = "tiny"

    @property
    def known(self) -> set[str]:
        return {*self.request.__struct_encode_fields__, *self.ignored}


_MESSAGES = Route(
    anthropic.MessagesRequest,
    anthropic.IGNORED_PARAMETERS,
    (
        message_create_params.MessageCreateParamsBase,
        message_create_params.MessageCreateParamsStreaming,
        beta_message_params.MessageCreateParamsBase,
        message_count_tokens_params.MessageCountTokensParams,
    ),
    {"messages": user("ping"), "max_tokens": 40},
)
ROUTES = {
    CHAT: Route(
        openai_chat.ChatRequest,
        openai_chat.IGNORED_PARAMETERS,
        (chat_params.CompletionCreateParamsBase, chat_params.CompletionCreateParamsStreaming),
        {"messages": user("ping"), "max_tokens": 40},
    ),
    COMPLETIONS: Route(
        openai_completions.CompletionRequest,
        openai_completions.IGNORED_PARAMETERS,
        (
            completion_create_params.CompletionCreateParamsBase,
            completion_create_params.CompletionCreateParamsStreaming,
        ),
        {"prompt": "ping"},
    ),
    EMBEDDINGS: Route(
        openai_embeddings.EmbeddingRequest,
        openai_embeddings.IGNORED_PARAMETERS,
        (embedding_create_params.EmbeddingCreateParams,),
        {"input": "ping"},
        "embedder",
    ),
    RERANK: Route(
        rerank.RerankRequest, (), (), {"query": "ping", "documents": ["x", "y"]}, "reranker"
    ),
    RESPONSES: Route(
        openai_responses.ResponsesRequest,
        openai_responses.IGNORED_PARAMETERS,
        (
            response_create_params.ResponseCreateParamsBase,
            response_create_params.ResponseCreateParamsStreaming,
        ),
        {"input": "ping", "max_output_tokens": 40},
    ),
    MESSAGES: _MESSAGES,
    COUNT: replace(_MESSAGES, body={"messages": user("ping")}),
}
SENT_AS_HEADERS = {"betas"}  # parameters of an SDK's methods that are in no body


def _names(vendor: Any) -> set[str]:
    bases = getattr(vendor, "__orig_bases__", ())
    inherited = (_names(base) for base in bases if hasattr(base, "__annotations__"))
    return set(vendor.__annotations__).union(*inherited)


# the table by itself


def test_every_route_has_a_table() -> None:
    assert {row.route for row in ROWS} == set(ROUTES)


@pytest.mark.parametrize("path", ROUTES)
def test_every_parameter_that_is_read_or_that_a_vendor_knows_is_in_the_table(path: str) -> None:
    route = ROUTES[path]
    documented = {row.parameter for row in ROWS if row.route == path}
    vendors = set[str]().union(*(_names(vendor) for vendor in route.vendors)) - SENT_AS_HEADERS
    assert route.known | vendors == documented


@pytest.mark.parametrize("path", ROUTES)
def test_what_nothing_reads_is_the_tables_to_reject(path: str) -> None:
    unread = {row.parameter for row in ROWS if row.route == path} - ROUTES[path].known
    fates = {row.fate for row in ROWS if row.route == path and row.parameter in unread}
    assert fates <= {"rejected"}


def _statuses(kind: type[errors.CortexError]) -> dict[str, int]:
    """By code; a preflight kind is the code of each of its own."""
    found = {kind.code: kind.status} if "code" in vars(kind) else {}
    for each in kind.__subclasses__():
        found |= _statuses(each)
    return found


STATUSES = _statuses(errors.CortexError) | dict.fromkeys(
    errors.PREFLIGHT_KINDS, errors.PreflightFailed.status
)


def test_every_code_is_documented_with_its_status() -> None:
    table = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", TEXT, re.MULTILINE)
    assert {code: int(status) for code, status in table} == STATUSES


# the table against the servers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    shapes = {
        "embedder": BertShape(),
        "reranker": BertShape(pooling="rank"),
        "filler": PRESETS["toy"],
    }
    made = {name: str(make_gguf(folder / f"{name}.gguf", s)) for name, s in shapes.items()}
    return {"tiny": TINY} | made


@pytest.fixture(scope="module")
def servers(models: dict[str, str]) -> Iterator[Stack]:
    with start_stack(models=tuple(models.values())) as stack:
        for model in models.values():
            asyncio.run(eventually(lambda model=model: stack.is_servable(model), model))
        yield stack


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.route} {row.label}" for row in ROWS])
async def test_what_the_table_says_is_what_happens(
    servers: Stack, models: dict[str, str], row: Row
) -> None:
    route = ROUTES[row.route]
    model = models["filler" if row.name == "suffix" else route.model]
    body = route.body | row.example | {"model": model}
    answer = await fetch("POST", servers.url + row.route, body)
    ignored = answer.headers.get("x-cortex-ignored", "").split(", ")
    named = {name.partition(".")[0] for name in ignored}
    if row.fate == "rejected":
        _check_rejected(answer, row)
    else:
        assert answer.status == 200, answer.body
        assert (row.parameter in named) == (row.fate == "no effect"), ignored
        if "." in row.name:
            assert row.name in ignored
    assert "internal_error" not in str(answer.body)


def _check_rejected(answer: Answer, row: Row) -> None:
    assert row.code
    assert answer.status == STATUSES[row.code], answer.body
    error = answer.body["error"]
    assert row.parameter in error["message"]
    if row.route in (MESSAGES, COUNT):  # whose errors have no param
        assert error["details"]["error_code"] == row.code
    else:
        assert error["code"] == row.code
        assert re.split(r"[.\[]", error["param"])[0] == row.parameter


@pytest.mark.parametrize("path", ROUTES)
async def test_what_is_in_no_table_is_rejected_by_name(
    servers: Stack, models: dict[str, str], path: str
) -> None:
    body = ROUTES[path].body | {"model": models[ROUTES[path].model], "no_such_parameter": 1}
    answer = await fetch("POST", servers.url + path, body)
    assert answer.status == 400
    assert "unsupported parameter: 'no_such_parameter'" in answer.body["error"]["message"]


@pytest.mark.parametrize("path", ROUTES)
async def test_whatever_is_null_counts_as_absent(
    servers: Stack, models: dict[str, str], path: str
) -> None:
    route = ROUTES[path]
    nulls = dict.fromkeys({row.parameter for row in ROWS if row.route == path})
    body = nulls | route.body | {"model": models[route.model]}
    answer = await fetch("POST", servers.url + path, body)
    assert answer.status == 200, answer.body
    assert "x-cortex-ignored" not in answer.headers
