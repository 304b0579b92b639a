"""What is closed is closed however it is asked for: versions, spellings, faces."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shim.core.closure import PREFIX_BYTES, TOPICS, WHOLE, fold, is_closed, parse_prefix, prefixes
from shim.metadata import ec2, gce, openstack

EC2_VERSIONS = (*ec2.VERSIONS, "latest", "2009-04-04", "2016-09-02", "2021-03-23", "2031-12-31")
OPENSTACK_VERSIONS = (*openstack.VERSIONS, "latest", "2012-08-10", "2025-04-04")
GCE_VERSIONS = (*gce.VERSIONS, "v1", "v1beta1", "v2")

NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789._~:@+=,-", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(NAMES, max_size=4).map("/".join)
FACES = st.sampled_from(
    [
        *((f"/{one}", f"/{other}") for one in EC2_VERSIONS for other in EC2_VERSIONS[:3]),
        *((f"/ec2/{one}", f"/{one}") for one in EC2_VERSIONS),
        *((f"/{one}", f"/ec2/{one}") for one in EC2_VERSIONS),
        *((f"/openstack/{one}", f"/openstack/{each}") for one in OPENSTACK_VERSIONS for each in OPENSTACK_VERSIONS[:3]),
        *((f"/computeMetadata/{one}", f"/computeMetadata/{other}") for one in GCE_VERSIONS for other in GCE_VERSIONS),
    ]
)
"""Two spellings of one version of one face."""


@pytest.mark.parametrize("version", EC2_VERSIONS)
def test_every_version_of_ec2_is_one(version: str) -> None:
    for path in ("", "/user-data", "/meta-data/public-keys/0/openssh-key", "/2009-04-04"):
        assert fold(f"/{version}{path}") == fold(f"/ec2/{version}{path}/") == f"/latest{path}"


@pytest.mark.parametrize("version", OPENSTACK_VERSIONS)
def test_every_version_of_openstack_is_one(version: str) -> None:
    assert fold(f"/openstack/{version}") == "/openstack/latest"
    assert fold(f"/openstack/{version}/user_data") == "/openstack/latest/user_data"


@pytest.mark.parametrize("version", GCE_VERSIONS)
def test_every_version_of_compute_metadata_is_one(version: str) -> None:
    assert fold(f"/computeMetadata/{version}/instance/id/") == "/computeMetadata/v1/instance/id"


@pytest.mark.parametrize(
    ("path", "folded"),
    [
        ("", "/"), ("/", "/"), ("/openstack/", "/openstack"), ("/computeMetadata", "/computeMetadata"),
        ("/metashim/v1/kv/guest/latest", "/metashim/v1/kv/guest/latest"),
        ("/openstack/content/0000", "/openstack/content/0000"), ("/openstack/content", "/openstack/content"),
        ("/openstack/contents", "/openstack/latest"),
        ("/ec2", "/latest"), ("/ec2/ec2/latest", "/ec2/ec2/latest"), ("/ec2/meta-data", "/ec2/meta-data"),
        ("/latest2/user-data", "/latest2/user-data"), ("/1.0.0", "/1.0.0"), ("/2009-04-041", "/2009-04-041"),
        ("/a/latest/user-data", "/a/latest/user-data"), ("/٢٠٠٩-٠٤-٠٤/user-data", "/٢٠٠٩-٠٤-٠٤/user-data"),
    ],
)  # fmt: skip
def test_what_is_no_version_stays(path: str, folded: str) -> None:
    assert fold(path) == folded


def test_a_listed_version_of_a_face_is_folded() -> None:
    """A version that a face serves and that is not folded would be a way around."""
    for year in range(2007, 2032):
        version = f"{year}-06-30"
        assert ec2.served(version) and fold(f"/{version}") == "/latest"


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_stands_for_what_it_names_on_every_face(topic: str) -> None:
    assert parse_prefix(topic) == topic
    found = prefixes((topic,))
    assert found == TOPICS[topic] and all(parse_prefix(one) == one for one in found)
    assert any(one.startswith("/metashim/") for one in found) or topic == "keys"


def test_a_topic_by_its_paths() -> None:
    def closed(path: str, *by: str) -> bool:
        return is_closed(fold(path), prefixes(by))

    for path in (
        "/1.0/user-data", "/ec2/2009-04-04/user-data", "/openstack/2018-08-27/user_data/",
        "/computeMetadata/v1beta1/instance/attributes/user-data", "/metashim/v1/sources/host/base",
    ):  # fmt: skip
        assert closed(path, "user-data"), path
    for path in ("/latest/user-data2", "/openstack/latest/user_data.json", "/metashim/v1/meta-data", "/", "/latest"):
        assert not closed(path, "user-data"), path
    assert closed("/openstack/2016-10-06/vendor_data2.json", "vendor-data")
    assert closed("/2021-03-23/meta-data/public-keys/0/openssh-key", "keys")
    assert closed("/metashim/v1/kv/guest/a", "kv") and not closed("/metashim/v1/meta-data", "kv")
    assert closed("/openstack/latest/user_data", "kv", "user-data")


def test_all_is_all() -> None:
    assert prefixes((WHOLE, "/latest", WHOLE)) == (WHOLE, "/latest")
    for path in ("/", "/latest", "/metashim/v1/lock", "/anything at all"):
        assert is_closed(fold(path), (WHOLE,))
    assert not is_closed("/latest", ())


@pytest.mark.parametrize(
    "text",
    [
        "", "latest", "user_data", "USER-DATA", "//", "/a//b", "/a/../b", "/./a", "/..", "/a b", "/a?b", "/a%20", "/ä",
        "/a\n", "/latest/user-data\n", "user-data\n", "/a\\b", "/a;b", "/" + "x" * PREFIX_BYTES, "/1.0/" + "x" * 251,
    ],
)  # fmt: skip
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^no prefix: (write / or a path|it has more than 256 bytes)") as caught:
        parse_prefix(text)
    assert len(str(caught.value)) < 120, "nothing of it is said"


def test_a_prefix_is_as_long_as_may_be_in_either_spelling() -> None:
    longest = "/latest/" + "x" * (PREFIX_BYTES - 8)
    assert parse_prefix(longest) == longest
    assert len(parse_prefix("/2009-04-04/" + "x" * (PREFIX_BYTES - 12))) == PREFIX_BYTES - 4


@given(FACES, PATHS, PATHS, st.booleans())
def test_what_is_below_a_closed_prefix_is_closed_in_any_spelling(
    spellings: tuple[str, str], top: str, below: str, slash: bool
) -> None:
    one, other = spellings
    prefix = parse_prefix(f"{one}/{top}".rstrip("/") + "/" * slash)
    path = "/".join(part for part in (other, top, below) if part)
    assert is_closed(fold(path), prefixes((prefix,)))
    assert is_closed(fold(path + "/"), (prefix,))


@given(PATHS, PATHS)
@example("openstack", "content/0")
@example("ec2", "")
@example("ec2", "latest/x")
def test_what_a_prefix_becomes_stays_so_and_closes_its_own(top: str, below: str) -> None:
    try:
        prefix = parse_prefix(f"/{top}")
    except ValueError:
        return
    assert parse_prefix(prefix) == prefix and fold(prefix) == prefix
    assert is_closed(fold(f"/{top}"), (prefix,))


@given(st.text(max_size=40).map(lambda text: "/" + text))
def test_folding_again_changes_nothing(path: str) -> None:
    assert fold(fold(path)) == fold(path)


@given(NAMES, NAMES)
def test_a_name_that_only_begins_so_is_another(name: str, more: str) -> None:
    assert not is_closed(f"/latest/{name}{more}", (f"/latest/{name}",))


def test_parameters_of_a_segment_are_no_way_around() -> None:
    closed = prefixes(["/latest/user-data", "vendor-data"])
    for path in ("/latest/user-data;x", "/2009-04-04;a=b/user-data;", "/openstack/latest/vendor_data.json;j=1"):
        assert is_closed(fold(path), closed), path
