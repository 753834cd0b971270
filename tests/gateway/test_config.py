"""The configuration file: what it may say, and where a mistake in it is."""

from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.gateway.config import Config, ConfigError, load, schema
from tunstack.services.local_names import Zone

WHOLE = """
links:
  - qemu+unix:///run/vm.sock?isolated=yes
  - bess:///run/uml.sock
publish: ["2222:22", "[::1]:8080:80/udp"]
network:
  subnet: 10.5.0.0/24
  mtu: 9000
  host_loopback: 10.5.0.2
  allow_host: true
dhcp:
  static:
    52:54:00:12:34:56: 10.5.0.7
  leases: /var/lib/vm/leases
  lease_time: 7200
  search: [lab.example]
dns:
  resolvers: [192.0.2.1, "192.0.2.2:5353"]
  hosts: {db.example: 10.9.9.9}
  zones:
    - name: lab.example
      hosts: {gw: [10.5.0.2, "fd00::2"], "@": [10.5.0.3]}
      records:
        - {name: www, type: CNAME, value: gw}
        - {name: "@", type: TXT, value: '"a b"'}
      patterns: [{match: "^n[0-9]+$", addresses: [10.5.0.9]}]
      default: [10.5.0.10]
  routes: {corp.example: ["10.1.1.1"]}
"""


def write(tmp_path: pathlib.Path, text: str | bytes) -> pathlib.Path:
    path = tmp_path / "gateway.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(tmp_path: pathlib.Path, text: str | bytes) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"'{path}'") and "\n" not in message
    return message


def test_all_that_a_file_can_say(tmp_path: pathlib.Path) -> None:
    config = load(write(tmp_path, WHOLE))
    assert config.links[1] == "bess:///run/uml.sock" and len(config.publish) == 2
    assert (config.network.mtu, config.network.allow_host) == (9000, True)
    assert config.dhcp.static == {"52:54:00:12:34:56": "10.5.0.7"}
    assert (config.dhcp.lease_time, config.dhcp.search) == (7200, ["lab.example"])
    settings = config.dns_settings()
    assert settings.resolvers == ((bytes((192, 0, 2, 1)), 53), (bytes((192, 0, 2, 2)), 5353))
    assert settings.hosts == {"db.example": bytes((10, 9, 9, 9))}
    assert settings.routes == {"corp.example": ((bytes((10, 1, 1, 1)), 53),)}
    assert settings.zones == (
        Zone(
            name="lab.example",
            hosts={
                "gw": [bytes((10, 5, 0, 2)), b"\xfd" + bytes(14) + b"\2"],
                "@": [bytes((10, 5, 0, 3))],
            },
            records={"www": [("CNAME", "gw")], "@": [("TXT", '"a b"')]},
            patterns=[("^n[0-9]+$", [bytes((10, 5, 0, 9))])],
            default=[bytes((10, 5, 0, 10))],
        ),
    )


@pytest.mark.parametrize("text", ["", "{}", "dns: {}", '{"links": []}'])
def test_nothing_has_to_be_said(tmp_path: pathlib.Path, text: str) -> None:
    assert load(write(tmp_path, text)) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("link: []", "unknown field `link`"),
        ("dns: {zones: [{name: a, default: [10.0.0.1], x: 1}]}", "unknown field `x` - at `$.dns.zones[0]`"),
        ("network: {mtu: many}", "Expected `int | null`, got `str` - at `$.network.mtu`"),
        ("network: {allow_host: yes}", "Expected `bool`, got `str` - at `$.network.allow_host`"),
        ("dhcp: {lease_time: 5}", "$.dhcp.lease_time"),
        ("links: qemu", "Expected `array`, got `str` - at `$.links`"),
        ("- a", "Expected `object`, got `array`"),
        ("dns: {zones: [{name: a..b}]}", "dns.zones[0]: 'a..b' is not a host name"),
        ("dns: {zones: [{name: a, patterns: [{match: '(', addresses: []}]}]}", "dns.zones[0]: '(' is not"),
        ("dns: {zones: [{name: a, hosts: {b: [10.0.0.300]}}]}", "dns.zones[0].hosts.b: "),
        (
            "dns: {zones: [{name: a, records: [{name: b, type: MX, value: x}]}]}",
            "dns.zones[0].records[0]: MX x",
        ),
        (
            "dns: {zones: [{name: a, records: [{name: b, type: NO, value: x}]}]}",
            "dns.zones[0].records[0]: NO x",
        ),
        ("dns: {resolvers: [here]}", "dns.resolvers: "),
        ("dns: {routes: {a: []}}", "dns.routes.a: there is no resolver"),
        ("dns: {hosts: {'a b': 1.1.1.1}}", "dns.hosts.a b: "),
        ("links: [", ", line 1: "),
        ("a: b: c", ", line 1: "),
        (b"\xff\xfe\xff", ""),
        ("&a [*a]", ""),
        ("!!python/object:os.system {}", ""),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: pathlib.Path, text: str | bytes, words: str
) -> None:
    assert words in refusal(tmp_path, text)


def test_a_file_that_is_not_there_or_too_large(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nothing")
    assert "larger" in refusal(tmp_path, b"#" * (1 << 20) + b"\n")


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_configuration_or_a_mistake(text: str | bytes) -> None:
    path = pathlib.Path("/tmp") / "tunstack-config-any"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        load(path)
    except ConfigError as error:
        assert str(path) in str(error)
    finally:
        path.unlink()


def test_the_schema_describes_the_file() -> None:
    made = schema()
    assert json.loads(json.dumps(made)) == made
    definitions = made["$defs"]
    assert set(definitions["Config"]["properties"]) == set(Config.__struct_fields__)
    assert all(part["additionalProperties"] is False for part in definitions.values())
