"""cloud-init's merging, compared with the real one's; and whose values end up in what is merged."""

from __future__ import annotations

import copy
import gzip
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.core.source import MERGE_DEFAULT, Kind
from shim.metadata.merge import merged
from shim.metadata.merge_type import MergeFault, Mergers, check, named, take_named
from shim.metadata.parts import Part, content_type_of

mergers = pytest.importorskip("cloudinit.mergers", reason="Debian's package cloud-init is not installed")

SCALARS = st.one_of(
    st.integers(0, 2), st.booleans(), st.none(), st.text("ab", max_size=2), st.floats(0, 1), st.binary(max_size=1)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.one_of(st.sampled_from("xyz"), st.integers(0, 1)), inner, max_size=3),
    ),
    max_leaves=10,
)
OPTIONS = st.lists(
    st.sampled_from([
        "append", "prepend", "replace", "no_replace", "recurse_str", "recurse_array", "recurse_list", "recurse_dict",
        "allow_delete", "Append", " replace ", "nonsense",
    ]),
    max_size=4,
)  # fmt: skip
NAMES = st.sampled_from(["dict", "list", "str", "DICT", " list ", "m_dict", "set", "", "d-ict", "m-list"])
TEXTS = st.one_of(
    st.lists(st.tuples(NAMES, OPTIONS).map(lambda one: f"{one[0]}({','.join(one[1])})"), max_size=4).map("+".join),
    st.text("dictlsr()+,_- mappendreplace", max_size=20),
    st.sampled_from([MERGE_DEFAULT, "dict(replace)+list()+str()", "list(append)\n", "dict(a)b)", "dict()x", "1dict()"]),
)
SETTINGS = st.one_of(OPTIONS, st.sampled_from(["no_replace", None, 5, "append"]))
ODD = st.sampled_from([None, 0, 1, [], {}, {"name": 1, "settings": []}])
HOWS = st.one_of(
    TEXTS,
    st.lists(st.one_of(
        st.fixed_dictionaries({"name": NAMES, "settings": SETTINGS}),
        st.tuples(NAMES, st.sampled_from(["append", "replace", "recurse_array"])).map(list),
        NAMES.map(lambda name: [name]), NAMES, ODD,
    ), max_size=3),
    st.none(), st.integers(0, 1), st.just({"name": "dict", "settings": []}),
)  # fmt: skip


def theirs(call: Any) -> Any:
    """What cloud-init makes of it; a part that it fails at it leaves out, whatever the error."""
    try:
        return call()
    except Exception:  # noqa: BLE001 (as its handler does)
        return MergeFault


def ours(call: Any) -> Any:
    try:
        return call()
    except MergeFault:
        return MergeFault


@settings(max_examples=400, deadline=None)
@given(VALUES, VALUES, TEXTS)
def test_two_values_meet_as_in_cloud_init(old: Any, new: Any, how: str) -> None:
    before = copy.deepcopy((old, new))
    mine = ours(lambda: Mergers(named(how)).merge(old, new))
    assert repr((old, new)) == repr(before)
    real = theirs(lambda: mergers.construct(mergers.string_extract_mergers(how)).merge(old, new))
    assert repr(mine) == repr(real)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["merge_how", "merge_type", "a"]), HOWS, max_size=3), VALUES, VALUES)
def test_a_cloud_configs_own_merge_type_is_read_as_by_cloud_init(config: dict[str, Any], old: Any, new: Any) -> None:
    one, other = copy.deepcopy(config), copy.deepcopy(config)
    mine = ours(lambda: Mergers(take_named(one)).merge(old, new))
    real = theirs(lambda: mergers.construct(mergers.dict_extract_mergers(other)).merge(old, new))
    assert repr(mine) == repr(real)
    assert one == other


def test_what_nests_too_deeply_is_left_out() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(MergeFault, match="nested too deeply"):
        Mergers(named("dict()")).merge(copy.copy(deep), {"a": deep["a"]})


class TestMergeTypeOfASource:
    @pytest.mark.parametrize("text", ["", MERGE_DEFAULT, "dict()", "Dict(Replace) + list( append )", "m_dict()"])
    def test_is_taken(self, text: str) -> None:
        check(text)

    @pytest.mark.parametrize(
        "text",
        ["list(append)", "dict", "set()", "dict()\nX-Evil: 1", "dict(é)", "dict()+no()", " ", "+"],
    )
    def test_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"merge type|dict\(\)"):
            check(text)


def part(id: str, body: str | bytes, merge: str = MERGE_DEFAULT) -> Part:
    raw = body.encode() if isinstance(body, str) else body
    return Part(id, "me", Kind.USER, 500, content_type_of(raw), raw, merge)


def config(id: str, text: str, merge: str = MERGE_DEFAULT) -> Part:
    return part(id, "#cloud-config\n" + text, merge)


class TestWhoseValuesAreIn:
    def test_lists_append_the_first_scalar_stays(self) -> None:
        outcome = merged([
            config("a", "packages: [x]\nhostname: one\nntp: {enabled: true}"),
            config("b", "packages: [y]\nhostname: two\nntp: {servers: [z]}"),
            config("c", "packages: []\nhostname: one\nextra: 1"),
        ])  # fmt: skip
        assert outcome.config["packages"] == ["x", "y"]
        assert outcome.winners == {
            "packages": ("a", "b"), "hostname": ("a", "c"), "ntp": ("a", "b"), "extra": ("c",),
        }  # fmt: skip
        assert outcome.lost == {"packages": ("c",), "hostname": ("b",)}
        assert outcome.problems == []

    def test_replacing_takes_it_from_all_before(self) -> None:
        parts = [config("a", "k: [x]"), config("b", "k: [y]"), config("c", "k: [z]", ""), config("d", "k: [w]")]
        outcome = merged(parts)
        assert outcome.config == {"k": ["z", "w"]}
        assert outcome.winners == {"k": ("c", "d")}
        assert outcome.lost == {"k": ("a", "b")}

    def test_what_is_deleted_is_nobodys(self) -> None:
        outcome = merged([config("a", "k: 1\nl: 2"), config("b", "k: null", "dict(allow_delete)")])
        assert outcome.config == {"l": 2}
        assert outcome.winners == {"l": ("a",)}
        assert outcome.lost == {"k": ("a",)}

    def test_a_part_of_two_cloud_configs_is_named_once(self) -> None:
        archive = part("a", '#cloud-config-archive\n- {content: "#cloud-config\\nk: [1]"}\n')
        second = "{content: 'k: [2]', Merge-Type: 'dict(recurse_array)+list(append)'}"
        both = part("b", f"#cloud-config-archive\n- 'k: [1]'\n- {second}\n")
        assert (merged([both]).config, merged([both]).winners) == ({"k": [1, 2]}, {"k": ("b",)})
        assert (merged([both, archive]).winners, merged([both, archive]).lost) == ({"k": ("a",)}, {"k": ("b",)})

    def test_true_is_not_one(self) -> None:
        outcome = merged([config("a", "k: 1"), config("b", "k: true", "dict(replace)")])
        assert outcome.winners == {"k": ("b",)}

    def test_keys_that_are_no_text(self) -> None:
        assert merged([config("a", "1: x\nnull: y")]).winners == {"1": ("a",), "None": ("a",)}


WRONG = {
    "no yaml": ("#cloud-config\nok: 1\na: [\n", "line 4, column 1"),
    "a tab": ("#cloud-config\na:\n\t- b\n", "line 3, column 1"),
    "no mapping": ("#cloud-config\n- a\n", "it is a list, where a dict is expected"),
    "nothing": ("#cloud-config\n# all of it\n", "nothing in it"),
    "a tag": ("#cloud-config\na: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    "half a character": (b"#cloud-config\na: \xff\n", "special characters are not allowed"),
    "a bad date": ("#cloud-config\na: 2024-13-45\n", "a value that cannot be read"),
    "a bad key": ("#cloud-config\n[a]: 1\n", "unhashable"),
    "depth": ("#cloud-config\na: " + "[" * 600, "nested too deeply"),
    "a bad merge type": ("#cloud-config\nmerge_how: x\na: 1\n", "a merge type is written as in"),
    "a byte order mark": ("\ufeff#cloud-config\na: 1\n", "byte order mark"),
    "no first line": ("packages: [nginx]\n", "first line says no kind"),
    "damaged gzip": (gzip.compress(b"#cloud-config\na: 1\n")[:-4], "gzip is damaged"),
    "no text in gzip": (gzip.compress(b"\xff\x00"), "no text"),
    "no version": ("Content-Type: multipart/mixed; boundary=b\n\n--b\n", "no MIME-Version"),
    "an archive": ("#cloud-config-archive\na: 1\n", "it is a dict, where a list is expected"),
    "an archive of a number": ("#cloud-config-archive\n- {content: 5}\n", "gives up all user-data"),
    "an archive of no type": ("#cloud-config-archive\n- {content: a, type: b}\n", "gives up all user-data"),
    "no dict()": ("#cloud-config\nmerge_how: list(append)\na: 1\n", "has no dict()"),
}


@pytest.mark.parametrize(("body", "words"), WRONG.values(), ids=WRONG)
def test_what_cloud_init_would_leave_out_is_told(body: str | bytes, words: str) -> None:
    alone = merged([part("host/x", body)])
    assert any(words in problem.what for problem in alone.problems), alone.problems
    assert all(problem.id == "host/x" and problem.grave for problem in alone.problems)
    assert alone.config == {} or "ok" not in alone.config


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("#include http://x\n", "what it includes"),
        ("## template: jinja\n#cloud-config\n", "the guest itself renders it"),
        ("#cloud-config-jsonp\n[]", "JSON patch"),
        ("#cloud-config-archive\n- 'k: 1'\n", "names no Merge-Type"),
    ],
)
def test_what_is_not_seen_here_is_told_but_is_not_grave(body: str, words: str) -> None:
    (problem,) = merged([part("host/x", body)]).problems
    assert words in problem.what
    assert not problem.grave


@pytest.mark.parametrize("body", ["#!/bin/sh\n", "#cloud-boothook", "#part-handler", "", "\n", "#cloud-config\na: é"])
def test_what_is_well_is_no_problem(body: str) -> None:
    assert merged([part("host/x", body)]).problems == []


def test_text_that_python_2_wrote() -> None:
    assert merged([config("a", "k: !!python/unicode 'x'")]).config == {"k": "x"}
