"""A configuration that is wrong anywhere refuses to load, naming source, key and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex_core.config.gateway import load_gateway_config
from cortex_core.config.loader import ConfigError, parse_address
from cortex_core.config.neuron import load_neuron_config


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def test_no_file_means_defaults():
    config = load_gateway_config(None, {})
    assert config.gateway.listen == "0.0.0.0:31313"
    assert config.neurons == []


def test_flags_win_over_environment_which_wins_over_the_file(write):
    path = write('[gateway]\nlisten = "a:1"\nmetrics_listen = "a:2"\ndrain_s = 1\n')
    environment = {"CORTEX_GATEWAY__LISTEN": "b:1", "CORTEX_GATEWAY__METRICS_LISTEN": "b:2"}
    config = load_gateway_config(path, environment, {"gateway.listen": "c:1"})
    assert config.gateway.listen == "c:1"
    assert config.gateway.metrics_listen == "b:2"
    assert config.gateway.drain_s == 1


def test_a_list_from_the_environment_is_json():
    environment = {"CORTEX_NEURONS": '[{"name": "q", "endpoint": "http://h:1"}]'}
    assert load_gateway_config(None, environment).neurons[0].name == "q"


def test_the_switch_and_nested_keys_of_a_neuron_come_from_the_environment():
    environment = {"NEURON_USE_CHAT_TEMPLATE": "false", "NEURON_ENGINE__STEP_TIMEOUT_S": "3"}
    config = load_neuron_config(None, environment)
    assert config.use_chat_template is False
    assert config.engine.step_timeout_s == 3


def test_the_clients_own_variable_is_not_the_gateways():
    load_gateway_config(None, {"CORTEX_URL": "http://x"})


def neuron(endpoint: str, name: str = "b") -> str:
    return f'[[neurons]]\nname = "{name}"\nendpoint = "{endpoint}"\n'


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:13131",
        "https://beast.internal",
        "http://[::1]:13131/",
        "http://my_box:1/behind/a/proxy",
        "http://bücher.example:1",
    ],
)
def test_an_endpoint_that_can_be_asked_is_taken(write, endpoint: str):
    assert load_gateway_config(write(neuron(endpoint)), {}).neurons[0].endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "h:1",
        "ftp://h:1",
        "http://",
        "http://:5",
        "http://h:13131x",
        "http://h:99999",
        "http://h:0",
        "http://[::1",
        "http://h h:1",
        "http://..:1",
        f"http://{'a' * 64}.example:1",
        "http://user:secret@h:1",
        "http://h:1?x=y",
        "http://h:1/#x",
        "http://h:1/ü",
        "http://h\\n:1",
    ],
)
def test_an_endpoint_that_nobody_could_be_asked_at_is_refused(write, endpoint: str):
    with pytest.raises(ConfigError, match="expected http://host:port, got") as caught:
        load_gateway_config(write(neuron(endpoint)), {})
    assert caught.value.key == "neurons[0].endpoint"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://h:1", "http://h:1/"),
        ("http://h:80", "http://H"),
        ("https://h/x", "https://h:443/x"),
    ],
)
def test_one_box_under_two_names_is_refused(write, one: str, other: str):
    with pytest.raises(ConfigError, match="'c' are one and the same") as caught:
        load_gateway_config(write(neuron(one, "c") + neuron(other, "d")), {})
    assert caught.value.key == "neurons[1].endpoint"


def test_a_name_ends_where_its_text_does(write):
    with pytest.raises(ConfigError, match="matching regex"):
        load_gateway_config(write(neuron("http://h:1", "beast\\n")), {})
    with pytest.raises(ConfigError, match="matching regex"):
        load_neuron_config(write('name = "beast\\n"'), {})
    with pytest.raises(ConfigError, match="matching regex"):
        load_neuron_config(write('[[models.sources]]\nname = "hub\\n"'), {})


def test_files_that_cortex_toml_names_are_beside_it(write, tmp_path: Path):
    for name in ("n.token", "a.token"):
        (tmp_path / name).write_text("secret")
    text = 'state_dir = "state"\nadmin_token_file = "a.token"\n'
    path = write(f'[gateway]\n{text}{neuron("http://h:1")}token_file = "n.token"\n')
    config = load_gateway_config(path, {})
    assert config.neurons[0].token_file == str(tmp_path / "n.token")
    assert config.gateway.admin_token_file == str(tmp_path / "a.token")
    assert config.gateway.state_dir == str(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_files_that_neuron_toml_names_are_beside_it(write, tmp_path: Path):
    for name in ("n.token", "h.token", "t.jinja"):
        (tmp_path / name).write_text("secret")
    (tmp_path / "models").mkdir()
    hub = '[[models.sources]]\nname = "h"\ntoken_file = "h.token"\ncache_dir = "cache"\n'
    own = 'token_file = "n.token"\nchat_templates = {m = "t.jinja"}\n'
    config = load_neuron_config(write(f'{own}[models]\nlocal = ["models"]\n{hub}'), {})
    assert config.token_file == str(tmp_path / "n.token")
    assert config.chat_templates == {"m": str(tmp_path / "t.jinja")}
    assert config.models.local == [str(tmp_path / "models")]
    (source,) = config.models.sources
    assert source.token_file == str(tmp_path / "h.token")
    assert source.cache_dir == str(tmp_path / "cache")


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "geheim\u00fc"])
def test_a_token_file_without_a_token_is_refused_by_the_keys_name(
    write, tmp_path: Path, content: str
):
    (tmp_path / "token").write_text(content, "utf-8")
    for key, load, text in (
        ("neurons[0].token_file", load_gateway_config, neuron("http://h:1") + "{}"),
        ("gateway.admin_token_file", load_gateway_config, "[gateway]\nadmin_{}"),
        ("token_file", load_neuron_config, "{}"),
        ("models.sources[0].token_file", load_neuron_config, '[[models.sources]]\nname="h"\n{}'),
    ):
        with pytest.raises(ConfigError, match="expected one line with a bearer token") as caught:
            load(write(text.format('token_file = "token"')), {})
        assert caught.value.key == key


def test_a_path_that_cannot_even_be_looked_at_is_refused(write):
    """Too long, for one; pathlib raises for that, as it does for folders of others."""
    for key, load, text in (
        ("gateway.admin_token_file", load_gateway_config, '[gateway]\nadmin_token_file = "{}"'),
        ("gateway.tls_cert", load_gateway_config, '[gateway]\ntls_cert = "{}"\ntls_key = "."'),
        ("token_file", load_neuron_config, 'token_file = "{}"'),
        ("models.local[0]", load_neuron_config, '[models]\nlocal = ["{}"]'),
    ):
        with pytest.raises(ConfigError, match="no such f") as caught:
            load(write(text.format("x" * 300)), {})
        assert caught.value.key == key


def test_a_state_folder_below_a_file_is_refused(write, tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in ("file", "file/deep/er"):
        with pytest.raises(ConfigError, match=r"gateway\.state_dir: \S*file is no folder"):
            load_gateway_config(write(f'[gateway]\nstate_dir = "{folder}"'), {})


def service(name: str, port: str) -> dict[str, str]:
    """What Kubernetes sets beside a service of this name."""
    at = f"{name}_PORT_{port}_TCP"
    names = (f"{name}_SERVICE_HOST", f"{name}_SERVICE_PORT", f"{name}_SERVICE_PORT_HTTP")
    names += (f"{name}_SERVICE_PORT_METRICS", f"{name}_PORT", at, f"{at}_ADDR", f"{at}_PORT")
    return dict.fromkeys((*names, f"{at}_PROTO"), "tcp://10.0.0.1:31313")


@pytest.mark.parametrize(
    "name",
    [
        "CORTEX",
        "CORTEX_GATEWAY",
        "CORTEX_METRICS",
        "CORTEX_ADMIN",
        "CORTEX_NEURONS",
        "NEURON",
        "NEURON_BEAST",
        "NEURON_ENGINE",
        "NEURON_MODELS",
        "NEURON_0",
    ],
)
def test_variables_of_a_service_of_our_name_are_somebody_elses(name: str):
    variables = service(name, "31313")
    assert load_gateway_config(None, variables) == load_gateway_config(None, {})
    assert load_neuron_config(None, variables) == load_neuron_config(None, {})


GATEWAY_FAULTS = [
    ('[gateway]\nlisen = "a:1"', "gateway.lisen", "did you mean 'listen'"),
    ("[gatway]", "gatway", "did you mean 'gateway'"),
    ('[gateway]\ndrain_s = "long"', "gateway.drain_s", "expected `float`, got `str`"),
    ("[gateway]\nmax_body_mb = 0", "gateway.max_body_mb", ">= 1"),
    ('[gateway]\nlisten = "nowhere"', "gateway.listen", "expected host:port, got 'nowhere'"),
    ('[eviction]\nstrategy = "fifo"', "eviction.strategy", "fifo"),
    (
        '[gateway]\ncors_origins = ["*", "chat.example"]',
        "gateway.cors_origins[1]",
        "an origin like",
    ),
    (
        '[gateway]\ntls_cert = "config.toml"\ntls_key = "config.toml"',
        "gateway.tls_cert",
        "cannot use",
    ),
    ('[gateway]\ncors_origins = ["https://a/"]', "gateway.cors_origins[0]", "'https://a/'"),
    ('[[neurons]]\nname = "b"', "neurons[0].endpoint", "required, but missing"),
    ('[[neurons]]\nname = "b"\nendpoint = "h:1"', "neurons[0].endpoint", "http://host:port"),
    ('[[neurons]]\nname = "b b"\nendpoint = "http://h:1"', "neurons[0].name", "matching regex"),
    (
        '[[neurons]]\nname = "b"\nendpoint = "http://h:1"\ntoken_file = "/nonexistent"',
        "neurons[0].token_file",
        "/nonexistent",
    ),
    (
        '[[neurons]]\nname = "b"\nendpoint = "http://h:1"\n' * 2,
        "neurons[1].name",
        "used twice",
    ),
    ("gateway = 3", "gateway", "expected `object`, got `int`"),
]


@pytest.mark.parametrize(("text", "key", "problem"), GATEWAY_FAULTS, ids=lambda x: str(x)[:40])
def test_a_fault_in_cortex_toml_names_file_key_and_expectation(
    write, text: str, key: str, problem: str
):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_gateway_config(path, {})
    assert caught.value.source == str(path)
    assert caught.value.key == key
    assert problem in caught.value.problem


NEURON_FAULTS = [
    ('listen = "x"', "listen", "host:port"),
    ("[engine]\ncontext = -1", "engine.context", ">= 0"),
    ('[chat_templates]\n"a/b" = "/nonexistent"', "chat_templates.a/b", "no such file"),
    ("[engine]\nparalel = 2", "engine.paralel", "did you mean 'parallel'"),
    ('[models]\nlocal = ["/nonexistent"]', "models.local[0]", "no such folder"),
    ('token_file = "/nonexistent"', "token_file", "no such file"),
    ("[[default_models]]", "default_models[0].id", "required, but missing"),
    ('[[default_models]]\nid = "m"\n' * 2, "default_models[1].id", "given twice"),
    ('[engine]\nkv = "half"', "engine.kv", "unified"),
    ('[engine]\nkv_type = "q5_0"', "engine.kv_type", "q8_0"),
    ("[engine]\ntensor_split = [-1]", "engine.tensor_split[0]", ">= 0"),
    ("[engine]\nmax_step_ms = 0", "engine.max_step_ms", "> 0"),
    ('[[default_models]]\nid = "m"\ncells = -1', "default_models[0].cells", ">= 0"),
    (
        '[engine]\nkv_type = "q8_0"\nflash_attention = false',
        "engine.flash_attention",
        "KV cache of type q8_0 needs it",
    ),
    (
        '[engine]\nflash_attention = false\n[[default_models]]\nid = "m"\nkv_type = "q4_0"',
        "default_models[0].flash_attention",
        "KV cache of type q4_0 needs it",
    ),
]


@pytest.mark.parametrize(("text", "key", "problem"), NEURON_FAULTS, ids=lambda x: str(x)[:40])
def test_a_fault_in_neuron_toml_names_file_key_and_expectation(
    write, text: str, key: str, problem: str
):
    with pytest.raises(ConfigError) as caught:
        load_neuron_config(write(text), {})
    assert caught.value.key == key
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("CORTEX_GATEWAY__DRAIN_S", "four", "'four'"),
        ("CORTEX_GATEWAY__DRIAN_S", "4", "did you mean 'drain_s'"),
        ("CORTEX_GATEWAY__LISTEN__PORT", "4", "unknown key"),
        ("CORTEX_GATEWAY", "4", "expected `object`"),
        ("CORTEX_NEURONS", "[", "truncated"),
        ("CORTEX_GATWAY__LISTEN", "x:1", "did you mean 'gateway'"),
        ("CORTEX_GATEWAY_LISTEN", "x:1", "did you mean CORTEX_GATEWAY__LISTEN?"),
        ("CORTEX_NEURON", "[]", "did you mean CORTEX_NEURONS?"),
        ("CORTEX_LISTEN", "x:1", "did you mean CORTEX_GATEWAY__LISTEN?"),
        ("CORTEX_ADMIN_TOKEN_FILE", "x", "did you mean CORTEX_GATEWAY__ADMIN_TOKEN_FILE?"),
    ],
)
def test_a_fault_in_the_environment_names_the_variable(variable: str, value: str, problem: str):
    with pytest.raises(ConfigError) as caught:
        load_gateway_config(None, {variable: value})
    assert caught.value.source == variable
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("NEURON_LISTN", "NEURON_LISTEN"),
        ("NEURON_TOKENFILE", "NEURON_TOKEN_FILE"),
        ("NEURON_LOGLEVEL", "NEURON_LOG_LEVEL"),
        ("NEURON_ENGINE_PARALLEL", "NEURON_ENGINE__PARALLEL"),
        ("NEURON_CPU_WORKERS", "NEURON_DEVICES__CPU_WORKERS"),
        ("NEURON_MODEL", "NEURON_MODELS"),
    ],
)
def test_a_misspelt_variable_of_the_neuron_is_refused(variable: str, meant: str):
    with pytest.raises(ConfigError, match=f"{variable}: .*did you mean {meant}\\?"):
        load_neuron_config(None, {variable: "x"})


def test_a_missing_file_and_broken_toml_are_named(tmp_path: Path, write):
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        load_gateway_config(tmp_path / "absent.toml", {})
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        load_gateway_config(write("a = = 1"), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gateway_config(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("0.0.0.0", 80)),
        ("box.lan:0", ("box.lan", 0)),
    ],
)
def test_addresses_parse(text: str, address: tuple[str, int]):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "80", "h:", "h:x", "h:65536", "h:-1", "h:²"])
def test_a_wrong_address_is_refused(text: str):
    with pytest.raises(ValueError, match="expected host:port"):
        parse_address(text)
