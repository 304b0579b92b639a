"""Nova's own rules, asked directly with the headers that we make: what the rest of our tests rely on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from uuid import UUID

import pytest

from shim.core.exchange import Headers, Subject
from shim.forward.tag import nova_headers
from tests.backends.process import SECRET
from tests.backends.visit import Reply, Visit
from tests.nova.rig import Nova, Server

A = UUID("c0ffee00-1111-4222-8333-444455556666")
B = UUID("c0ffee00-1111-4222-8333-444455557777")
PROJECT, DASHED = "0123456789abcdef0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdef"
SIGNATURE = "bc12d5dd1b5fb591a5bf734982039439f3edd7c3e99e95632ccc19437a699a91"  # of A by SECRET
LATIN = b"\xff\xfe\x00binary\x80"
META = "/openstack/latest/meta_data.json"
PASSWORD = "/openstack/latest/password"


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    servers = [
        Server(A, PROJECT, "one", gzip.compress(b"#cloud-config\n"), {"mine": "ssh-ed25519 AAAA me"}, {"role": "web"}),
        Server(B, "other", "two", LATIN, address="10.0.0.5/24"),
    ]
    with Nova(servers) as nova:
        yield nova


def said(subject: Subject, secret: str = SECRET, **changed: str | None) -> list[tuple[str, str]]:
    """Our headers, with some changed or left out (None); `X_Tenant_ID` stands for X-Tenant-ID."""
    ours: Headers | None = nova_headers(subject, secret.encode())
    assert ours is not None
    given = {name.decode(): value.decode() for name, value in ours}
    given |= {name.replace("_", "-"): value for name, value in changed.items()}  # type: ignore[misc]
    return [(name, value) for name, value in given.items() if value is not None]


def ask(nova: Nova, path: str, headers: list[tuple[str, str]], method: str = "GET", body: bytes | None = None) -> Reply:
    with Visit(nova.connect()) as visit:
        return visit.ask(path, method, headers, body)


SUBJECT_A = Subject(A, PROJECT)
SUBJECT_B = Subject(B, "other", "10.0.0.5")


class TestHeaders:
    def test_ours_are_accepted(self, nova):
        reply = ask(nova, META, said(SUBJECT_A))
        assert reply.status == 200
        assert reply.header("Content-Type") == "application/json"
        assert json.loads(reply.body)["uuid"] == str(A)

    def test_the_signature_is_the_known_one(self):
        assert dict(said(SUBJECT_A))["X-Instance-ID-Signature"] == SIGNATURE

    def test_a_dashed_project_is_the_same(self, nova):
        assert ask(nova, META, said(Subject(A, DASHED))).status == 200

    @pytest.mark.parametrize("name", ["X_Instance_ID", "X_Instance_ID_Signature", "X_Tenant_ID"])
    def test_each_is_required(self, nova, name):
        assert ask(nova, META, said(SUBJECT_A, **{name: None})).status == 400

    @pytest.mark.parametrize("signature", ["", "0" * 64, SIGNATURE.upper(), SIGNATURE[:-1]])
    def test_a_wrong_signature(self, nova, signature):
        assert ask(nova, META, said(SUBJECT_A, X_Instance_ID_Signature=signature)).status == 403

    def test_a_wrong_secret(self, nova):
        assert ask(nova, META, said(SUBJECT_A, secret="another")).status == 403

    def test_another_project(self, nova):
        assert ask(nova, META, said(SUBJECT_A, X_Tenant_ID="other")).status == 404

    def test_a_project_with_dashes(self, nova):
        """Why we drop them."""
        assert ask(nova, META, said(SUBJECT_A, X_Tenant_ID=DASHED)).status == 404

    def test_an_unknown_instance(self, nova):
        assert ask(nova, META, said(Subject(UUID(int=5), PROJECT))).status == 404

    @pytest.mark.parametrize("name", ["X-Instance-ID", "X_Instance_ID", "x-instance-id"])
    def test_a_second_instance_spoils_the_first(self, nova, name):
        """Why a guest's own may not pass, in any spelling."""
        assert ask(nova, META, [*said(SUBJECT_A), (name, str(B))]).status == 403

    def test_a_provider_switches_to_another_look_up(self, nova):
        """Why a guest's X-Metadata-Provider may not pass."""
        assert ask(nova, META, [*said(SUBJECT_A), ("X-Metadata-Provider", "p")]).status == 400
        both = [*said(SUBJECT_A), ("X-Metadata-Provider", "p"), ("X-Forwarded-For", "10.0.0.9")]
        assert ask(nova, META, both).status == 403

    def test_the_root_needs_none(self, nova):
        reply = ask(nova, "/", [])
        assert (reply.status, reply.text.splitlines()[-1]) == (200, "latest")


class TestAddress:
    PATH = "/latest/meta-data/local-ipv4"

    def test_is_the_port_s(self, nova):
        assert ask(nova, self.PATH, said(SUBJECT_B, X_Forwarded_For="10.9.9.9")).text == "10.0.0.5"

    def test_is_ours_where_there_is_no_port(self, nova):
        assert ask(nova, self.PATH, said(Subject(A, PROJECT, "10.0.0.7"))).text == "10.0.0.7"


class TestPaths:
    @pytest.mark.parametrize(
        "path", ["/openstack/2011-01-01/meta_data.json", "/openstack/latest/nothing", "/1999-01-01/meta-data/", "/x"]
    )
    def test_unknown(self, nova, path):
        assert ask(nova, path, said(SUBJECT_A)).status == 404

    @pytest.mark.parametrize("path", ["/2009-04-04/meta-data", "/latest/meta-data/"])
    def test_a_slash_makes_no_difference(self, nova, path):
        assert "public-keys/" in ask(nova, path, said(SUBJECT_A)).text.splitlines()

    def test_keys(self, nova):
        assert ask(nova, "/latest/meta-data/public-keys/", said(SUBJECT_A)).text == "0=mine"
        assert ask(nova, "/latest/meta-data/public-keys/0", said(SUBJECT_A)).text == "openssh-key"
        assert ask(nova, "/latest/meta-data/public-keys/0/openssh-key", said(SUBJECT_A)).text == "ssh-ed25519 AAAA me"

    def test_network(self, nova):
        network = json.loads(ask(nova, "/openstack/latest/network_data.json", said(SUBJECT_B)).body)
        assert network["networks"][0]["ip_address"] == "10.0.0.5"
        assert network["links"][0]["ethernet_mac_address"] == "02:00:00:00:00:05"

    @pytest.mark.parametrize("path", ["/openstack/latest/user_data", "/latest/user-data"])
    def test_user_data_is_bytes(self, nova, path):
        assert gzip.decompress(ask(nova, path, said(SUBJECT_A)).body) == b"#cloud-config\n"
        assert ask(nova, path, said(SUBJECT_B)).body == LATIN


class TestPassword:
    def test_once(self, nova):
        assert ask(nova, PASSWORD, said(SUBJECT_B)).body == b""
        assert ask(nova, PASSWORD, said(SUBJECT_B), "POST", b"x" * 1020).status == 200
        assert ask(nova, PASSWORD, said(SUBJECT_B)).body == b"x" * 1020
        assert ask(nova, PASSWORD, said(SUBJECT_B), "POST", b"y").status == 409

    def test_too_long(self, nova):
        assert ask(nova, PASSWORD, said(SUBJECT_A), "POST", b"x" * 1021).status == 400

    def test_without_a_length(self, nova):
        """Why a small body is forwarded with its length, even an empty one: Nova compares it unasked."""
        assert ask(nova, PASSWORD, said(SUBJECT_A), "POST").status == 500

    def test_other_methods(self, nova):
        assert ask(nova, PASSWORD, said(SUBJECT_A), "PUT", b"x").status == 400

    def test_not_before_2013(self, nova):
        assert ask(nova, "/openstack/2012-08-10/password", said(SUBJECT_A)).status == 404


class TestServing:
    def test_connections_are_kept(self, nova):
        with Visit(nova.connect()) as visit:
            assert [visit.ask(META, headers=said(SUBJECT_A)).status for _ in range(5)] == [200] * 5
            assert visit.ask(PASSWORD, "POST", said(SUBJECT_A, X_Tenant_ID="other"), b"unread" * 100).status == 404
            assert visit.ask(META, headers=said(SUBJECT_A)).status == 200

    def test_on_a_unix_socket(self):
        with Nova([Server(A, PROJECT)], unix=True) as nova:
            assert nova.url.startswith("unix:/")
            assert ask(nova, META, said(SUBJECT_A)).status == 200
