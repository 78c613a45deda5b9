"""Settings: precedence, conversion, and errors that name the place and the nearest known key."""

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from oxlo_local.config import SETTINGS, Settings, load
from oxlo_local.errors import BadRequest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An empty configuration file."""
    path = tmp_path / "config.toml"
    path.touch()
    return path


def settings_of(file: Path, **values: object) -> Settings:
    """Settings from flags alone."""
    return load({"config": file, **values}, {})


def test_every_field_is_a_listed_setting_with_help() -> None:
    assert [setting.name for setting in SETTINGS] == [
        field.name for field in msgspec.structs.fields(Settings)
    ]
    assert all(len(setting.help) > 10 for setting in SETTINGS)


def test_flags_beat_environment_beats_file_beats_default(file: Path) -> None:
    file.write_text('port = 1001\nqueue_max = 11\ndrain_seconds = 1.5\nlog_level = "debug"\n')
    environ = {"OXLO_CONFIG": str(file), "OXLO_PORT": "1002", "OXLO_QUEUE_MAX": "12"}
    settings = load({"port": 1003, "ctx": None}, environ)
    assert (settings.port, settings.queue_max, settings.drain_seconds) == (1003, 12, 1.5)
    assert (settings.log_level, settings.host, settings.ctx) == ("debug", "127.0.0.1", None)


def test_environment_text_becomes_typed_values(file: Path) -> None:
    environ = {
        "OXLO_CONFIG": str(file),
        "OXLO_HOME": "~/oxlo-data",
        "OXLO_STRICT": "true",
        "OXLO_FLASH_ATTENTION": "false",
        "OXLO_CORS_ORIGINS": "http://localhost:3000, https://app.example",
        "OXLO_DEFAULT_PRICE_USD": "0.0027",
        "OXLO_THREADS": "",
        "OXLO_API_KEY": "oxlo_x",
        "PATH": "/bin",
    }
    settings = load({}, environ)
    assert settings.home == Path.home() / "oxlo-data"
    assert settings.strict is True and settings.flash_attention is False and settings.threads is None
    assert settings.cors_origins == ["http://localhost:3000", "https://app.example"]
    assert settings.default_price_micros == 2700


def test_a_price_in_the_file_never_passes_through_a_binary_fraction(file: Path) -> None:
    file.write_text("default_price_usd = 0.000003\n")
    settings = load({"config": file}, {})
    assert settings.default_price_usd == Decimal("0.000003") and settings.default_price_micros == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "did you mean port?"),
        ("port = 70000", "port: Expected int <= 65535"),
        ('log_level = "loud"', "debug | info | warning | error"),
        ("parallel = 300", "parallel: Expected int <= 256"),
        ('default_price_usd = "0.00000001"', "whole number of micro-dollars"),
        ('default_price_usd = "-1"', "whole number of micro-dollars"),
        ("drain_seconds = -1", "drain_seconds"),
        ("request_timeout = inf", "request_timeout: Expected float <= 31622400"),
        ("heartbeat_seconds = 1e300", "heartbeat_seconds: Expected float <= 31622400"),
        ("write_timeout = nan", "write_timeout: Expected float"),
        (
            'cors_origins = ["https://app.example/"]',
            "'https://app.example/' in cors_origins is no web origin",
        ),
        ('cors_origins = "app.example"', "write it as a browser does"),
        ("strict = 3", "true | false"),
        ('config = "x.toml"', "cannot stand in the file"),
        ("port = ", "cannot read the configuration file"),
        ("[models.x]\nctx = 1", "unknown setting models"),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(BadRequest) as caught:
        load({"config": file}, {})
    assert message in caught.value.message


def test_an_unknown_variable_names_the_nearest(file: Path) -> None:
    with pytest.raises(BadRequest, match="OXLO_PROT; did you mean OXLO_PORT"):
        load({"config": file}, {"OXLO_PROT": "1"})


def test_a_bad_variable_is_named(file: Path) -> None:
    with pytest.raises(BadRequest, match="OXLO_PORT: .*it is integer"):
        load({"config": file}, {"OXLO_PORT": "eight"})


def test_a_named_file_must_exist_and_the_default_one_need_not(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="there is no configuration file"):
        load({"config": tmp_path / "no.toml"}, {})
    with pytest.raises(BadRequest, match="there is no configuration file"):
        load({}, {"OXLO_CONFIG": str(tmp_path / "no.toml")})


@pytest.mark.parametrize("origin", ["*", "null", "https://[::1]:3000", "tauri://localhost"])
def test_origins_as_browsers_write_them(file: Path, origin: str) -> None:
    assert settings_of(file, cors_origins=origin).cors_origins == [origin]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost", "LocalHost"])
def test_loopback_hosts(file: Path, host: str) -> None:
    assert settings_of(file, host=host).loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "example.com", "localhost.example.com", "[::]"]
)
def test_other_hosts_are_not_loopback_and_refuse_to_go_without_keys(file: Path, host: str) -> None:
    assert not settings_of(file, host=host).loopback
    with pytest.raises(BadRequest, match="loopback only"):
        settings_of(file, host=host, auth="never")


def test_the_home_is_private_and_paths_lie_in_it(file: Path, tmp_path: Path) -> None:
    settings = settings_of(file, home=tmp_path / "a" / "home")
    settings.make_home()
    settings.make_home()
    assert settings.home.stat().st_mode & 0o777 == 0o700
    assert settings.locks_dir.is_dir() and settings.manifests_dir.is_dir()
    for path in (settings.ledger_path, settings.serve_file, *settings.content_paths):
        assert path.parent == settings.home
    assert settings.user_models_toml == file.parent / "models.toml"


def test_a_home_that_cannot_be_made_says_what_to_do(file: Path) -> None:
    with pytest.raises(BadRequest, match="OXLO_HOME"):
        settings_of(file, home=file / "below-a-file").make_home()


def test_settings_are_frozen(file: Path) -> None:
    with pytest.raises(AttributeError):
        settings_of(file).port = 1  # type: ignore[misc]
