"""Settings: defaults, every field's limits, errors that name file, field and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.config import Config, load, parse, settings
from shim.errors import ConfigError


def refused(text: str) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "m.toml")
    assert str(caught.value).startswith("m.toml: ")
    assert caught.value.hint
    return str(caught.value), caught.value.hint


def field(name: str, value: str) -> str:
    table, key = name.split(".")
    return f"[{table}]\n{key} = {value}\n"


def test_an_empty_file_is_the_default() -> None:
    assert parse(b"", "m.toml") == Config()


def test_paths_follow_from_the_folders() -> None:
    config = parse(b'[host]\nname="x"\nrun_dir="/r"\nstate_dir="/s"\nbpffs="/b"', "m.toml")
    assert (str(config.control_socket), str(config.feed_socket)) == ("/r/control.sock", "/r/feed.sock")
    assert (str(config.lock), str(config.store)) == ("/r/agent.lock", "/s/metashim.db")
    assert str(config.pins) == "/b/x"


def test_service_addresses_by_family() -> None:
    data = Config().datapath
    assert [str(a) for a in data.service_v4] == ["169.254.169.254"]
    assert [str(a) for a in data.service_v6] == ["fd00:ec2::254", "fe80::a9fe:a9fe"]


BAD = [
    ("host.name", '"Upper"'),
    ("host.name", '"thirteenchars"'),
    ("host.name", '""'),
    ("host.name", '"-x"'),
    ("host.name", '"x\\n"'),
    ("host.run_dir", '"relative"'),
    ("host.run_dir", f'"/{"x" * 95}"'),
    ("host.state_dir", '"a\\u0000b"'),
    ("host.bpffs", "3"),
    ("datapath.datapath", '"nftables"'),
    ("datapath.taps", "[]"),
    ("datapath.taps", '"tap*"'),
    ("datapath.taps", '["*"]'),
    ("datapath.taps", '["l?"]'),
    ("datapath.taps", '["sixteen-letters!"]'),
    ("datapath.taps", '["a b"]'),
    ("datapath.service_addresses", "[]"),
    ("datapath.service_addresses", '["169.254.169"]'),
    ("datapath.service_addresses", '["127.0.0.1"]'),
    ("datapath.service_addresses", '["224.0.0.1"]'),
    ("datapath.service_addresses", '["255.255.255.255"]'),
    ("datapath.service_addresses", '["0.0.0.0"]'),
    ("datapath.service_addresses", '["100.64.0.9"]'),
    ("datapath.service_addresses", '["2001:db8::1"]'),
    ("datapath.service_addresses", '["fd6d:7368:696d::1"]'),
    ("datapath.service_addresses", '["fe80::1%eth0"]'),
    ("datapath.service_addresses", '["fe80::1", "fe80:0::1"]'),
    ("datapath.service_addresses", '["10.0.0.1","10.0.0.2","10.0.0.3","10.0.0.4","10.0.0.5"]'),
    ("datapath.service_addresses", '["fd00::1","fd00::2","fd00::3","fd00::4","fd00::5"]'),
    ("datapath.service_ports", "[0]"),
    ("datapath.service_ports", "[65536]"),
    ("datapath.service_ports", "[80, 80]"),
    ("datapath.service_ports", "[1, 2, 3, 4, 5]"),
    ("datapath.service_ports", "[]"),
    ("datapath.max_ports", "0"),
    ("datapath.max_ports", "65536"),
    ("datapath.connection_rate", "0"),
    ("datapath.connection_burst", "true"),
    ("datapath.flows_per_port", "1.5"),
    ("datapath.event_rate", "-1"),
    ("datapath.hop_limit", "65"),
    ("policy.enabled", '"yes"'),
    ("datapath.namespaces", '"rack*"'),
    ("datapath.namespaces", '["a/b"]'),
    ("datapath.namespaces", '[""]'),
    ("identity.netns_prefix", '"a b"'),
    ("identity.netns_prefix", '"a/"'),
    ("identity.sources", "[]"),
    ("identity.sources", '["file", "file"]'),
    ("identity.sources", '["fil"]'),
    ("identity.file", '"instances.toml"'),
    ("identity.libvirt_uri", '"qemu:system"'),
    ("identity.libvirt_uri", '"qemu:///system x"'),
    ("identity.libvirt_state", '"run/libvirt/qemu"'),
    ("identity.ovs", '"unix:db.sock"'),
    ("identity.ovs", '"ptcp:6640"'),
    ("identity.ovs", '"ssl:127.0.0.1:65536"'),
    ("identity.ovs", '"tcp:127.0.0.1"'),
    ("identity.ovs_tls", '"ovs"'),
    ("proxy.workers", "0"),
    ("proxy.user", '""'),
    ("proxy.head_bytes", "1023"),
    ("proxy.body_bytes", "-1"),
    ("proxy.head_seconds", "0"),
    ("proxy.idle_seconds", "3601"),
    ("proxy.connections_per_instance", "5000"),
    ("proxy.connections", "63"),
    ("proxy.request_rate", "0"),
    ("proxy.request_burst", "0"),
    ("tokens.mode", '"on"'),
    ("forward.routes", "{}"),
    ("forward.routes", '{"/x" = "embedded"}'),
    ("forward.routes", '{"/" = "nowhere"}'),
    ("forward.routes", '{"/" = "nova"}'),
    ("forward.routes", '{"/" = "embedded", "x" = "embedded"}'),
    ("forward.routes", '{"/" = "embedded", "/a//b" = "embedded"}'),
    ("forward.routes", '{"/" = "embedded", "/%61" = "embedded"}'),
    ("forward.connect_seconds", "0.01"),
    ("forward.read_seconds", "0"),
    ("forward.connections", "0"),
    ("forward.requests_per_instance", "0"),
    ("nova.addresses", '["127.0.0.1:8775"]'),
    ("nova.addresses", '["http://nova:8775/"]'),
    ("nova.secret_file", '"secret"'),
    ("nova.ca_file", '"ca.pem"'),
    ("nova.certificate_file", '"a.pem"'),
    ("nova.key_file", '"/key.pem"'),
    ("http.addresses", '["ftp://x"]'),
    ("http.addresses", '["http://x:65536"]'),
    ("http.addresses", '["unix:x"]'),
    ("http.addresses", '["http://x", "http://x"]'),
    ("http.secret_file", "1"),
    ("http.ca_file", "1"),
    ("http.certificate_file", "1"),
    ("http.key_file", '"/key.pem"'),
    ("http.headers", '{"X_Id" = "{instance}"}'),
    ("http.headers", '{"X-Id" = "{uuid}"}'),
    ("http.headers", '{"X-Id" = "{instance.bytes}"}'),
    ("http.headers", '{"X-Id" = "a\\nb"}'),
    ("http.headers", '{"X-Id" = "a", "x-id" = "b"}'),
    ("http.headers", '{"Content-Length" = "5"}'),
    ("http.headers", '{"x-metashim-signature" = "5"}'),
    ("http.health_path", '"x"'),
    ("http.health_path", '"/a b"'),
    ("sources.directory", '"sources.d"'),
    ("sources.composition", '"both"'),
    ("sources.limit_bytes", "100"),
    ("kv.keys", "-1"),
    ("kv.value_bytes", "262145"),
    ("kv.total_bytes", "0"),
    ("kv.writes_per_second", "0"),
    ("metrics.listen", '"http://0.0.0.0:9478"'),
    ("metrics.listen", '"https://127.0.0.1:9478"'),
    ("metrics.listen", '"9478"'),
    ("metrics.instances", "1"),
    ("control.group", "0"),
    ("log.level", '"loud"'),
    ("log.access_rate", "-1"),
]


BLAMED = {
    ("proxy.connections_per_instance", "5000"): "proxy.connections",  # it is the total that is too small
    ("nova.certificate_file", '"a.pem"'): "nova.certificate_file",
    ("nova.addresses", '["http://nova:8775/"]'): "nova.addresses",  # right by itself, but without a secret
}


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_is_not_allowed_names_its_field(name: str, value: str) -> None:
    what, hint = refused(field(name, value))
    about = next(s for s in settings() if s.name == name)
    if (name, value) in BLAMED:
        about = next(s for s in settings() if s.name == BLAMED[name, value])
    assert f"m.toml: {about.name}: " in what
    assert (about.sentence in hint and about.default in hint) or hint == "change one of the two"


def test_every_setting_has_a_case_above() -> None:
    assert {name for name, _ in BAD} == {s.name for s in settings()}


GOOD = [
    ("host.name", '"a-1"'),
    ("host.run_dir", f'"/{"x" * 93}"'),
    ("datapath.datapath", '"nft"'),
    ("datapath.taps", '["tap?", "vnet[0-9]*"]'),
    ("datapath.service_addresses", '["10.0.0.1","10.0.0.2","10.0.0.3","10.0.0.4","fd00::1"]'),
    ("datapath.service_ports", "[80, 8080, 8775, 65535]"),
    ("datapath.event_rate", "0"),
    ("datapath.hop_limit", "1"),
    ("proxy.connections", "64"),
    ("forward.routes", '{"/" = "embedded", "/latest/meta-data" = "embedded", "/a/b/" = "embedded"}'),
    ("forward.connect_seconds", "1"),
    ("http.headers", '{"X-Who" = "{instance} of {project} at {address}"}'),
    ("metrics.listen", '"http://[::1]:9478"'),
    ("metrics.listen", '"unix:/run/metashim/metrics.sock"'),
    ("control.group", '"libvirt"'),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_the_limits_themselves_are_allowed(name: str, value: str) -> None:
    parse(field(name, value).encode(), "m.toml")


def test_two_settings_that_fit_only_together() -> None:
    config = parse(b"[proxy]\nconnections = 5\nconnections_per_instance = 4", "m.toml")
    assert (config.proxy.connections, config.proxy.connections_per_instance) == (5, 4)


def test_a_pattern_must_not_guard_metashims_own_link() -> None:
    what, _ = refused('[host]\nname = "vnet-a"\n')
    assert what == "m.toml: datapath.taps: 'vnet*' also matches metashim's own link vnet-a0"


def test_another_datapath_leaves_the_rest_as_it_is() -> None:
    config = parse(b'[host]\nname = "x"\n[datapath]\nmax_ports = 7\n', "m.toml")
    assert config.datapath.datapath == "auto"
    other = config.on("nft")
    assert (other.host.name, other.datapath.max_ports, other.datapath.datapath) == ("x", 7, "nft")
    assert other.on("auto") == config


def test_near_misses_are_named() -> None:
    assert refused("[datapth]\n") == ("m.toml: unknown table [datapth]", "did you mean datapath?")
    what, hint = refused("[datapath]\nmax_port = 3\n")
    assert (what, hint) == ("m.toml: unknown setting datapath.max_port", "did you mean max_ports?")
    assert "host, datapath" in refused("[zzz]\n")[1]


@pytest.mark.parametrize("text", ["[datapath", "x", 'a = "b', "datapath = 3"])
def test_what_is_not_a_file_of_tables(text: str) -> None:
    refused(text)


def test_not_utf8() -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        parse(b"\xff\xfe", "m.toml")


def test_load_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)
    good = tmp_path / "good.toml"
    good.write_text('[log]\nlevel = "debug"\n')
    assert load(good).log.level == "debug"


def test_settings_describe_every_field_once() -> None:
    found = settings()
    assert len({s.name for s in found}) == len(found) == 63
    assert all(s.sentence.endswith(".") and s.type and s.default for s in found)
    ports = next(s for s in found if s.name == "datapath.max_ports")
    assert (ports.type, ports.default) == ("number 1 to 65535", "4096")


def test_every_documented_default_reads_back_as_the_default() -> None:
    merged: dict[str, list[str]] = {}
    for s in settings():
        merged.setdefault(s.name.split(".")[0], []).append(f"{s.name.split('.')[1]} = {s.default}")
    whole = "".join(f"[{table}]\n" + "\n".join(lines) + "\n" for table, lines in merged.items())
    assert parse(whole.encode(), "m.toml") == Config()
