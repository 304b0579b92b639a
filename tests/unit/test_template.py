"""Templates: what they are told, what goes wrong with them, and that a bad one costs little."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.core.exchange import Request
from shim.core.kv import Value
from shim.core.source import Reads
from shim.metadata import faces, template
from shim.metadata.document import decode
from shim.metadata.sandbox import Sandbox
from shim.metadata.template import TemplateFault
from shim.metadata.view import View

ROOT = Path(__file__).parents[2]
A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d5mT1bG1lY3JldGtleWJ5dGVzMTIzNDU2Nzg5MDEy"
FULL: dict[str, Any] = {
    "name": "web", "fqdn": "web-1.example.org", "project_id": "blue", "availability_zone": "az", "launch_index": 3,
    "meta": {"role": "web"}, "tags": {"team": "shop"}, "public_keys": {"ops": KEY + " ops\n"},
    "networks": [
        {"mac": "fa:16:3e:00:00:01", "addresses": ["192.0.2.10/24", "2001:DB8::0010/64"]},
        {"mac": "fa:16:3e:00:00:02", "addresses": ["198.51.100.7/24"]},
    ],
}  # fmt: skip


def render(text: str, **variables: Any) -> str:
    return template.render(text.encode(), variables).decode()


def fault(text: str, **variables: Any) -> TemplateFault:
    with pytest.raises(TemplateFault) as caught:
        render(text, **variables)
    return caught.value


class TestVariables:
    def made(self, *keys: Value, **fields: Any) -> View:
        by_name = {key.key: key for key in keys}
        return View(A, decode(json.dumps(fields).encode()), now=0.0, project="seen", load_values=lambda: by_name)

    def test_all_of_them(self) -> None:
        keys = (
            Value("host/role", "größe".encode()), Value("guest/a/b", b"1"), Value("host/raw", b"\xff"),
            Value("host/once", b"x", reads=Reads.ONCE), Value("host/confirm", b"x", reads=Reads.CONFIRM),
        )  # fmt: skip
        found = template.variables(self.made(*keys, **FULL))
        assert found["instance_id"] == str(A)
        assert found["project_id"] == "seen"
        assert found["tags"] == {"team": "shop"}
        assert found["addresses"] == ["192.0.2.10", "2001:db8::10", "198.51.100.7"]
        assert found["kv"] == {"host/role": "größe", "guest/a/b": "1"}

    @pytest.mark.parametrize("fields", [{}, FULL], ids=["nothing", "all"])
    def test_meta_data_is_what_the_guest_reads(self, fields: dict[str, Any]) -> None:
        request = Request(b"GET", b"/openstack/latest/meta_data.json")
        made = self.made(**fields)
        response = getattr(faces.respond(made, request), "response", None)
        assert template.variables(made)["meta_data"] == json.loads(response.body)

    def test_a_template_of_all(self) -> None:
        text = "{{ meta_data.hostname }} {{ kv['host/a'] }} "
        text += "{% for one in addresses %}[{{ one }}]{% endfor %} {{ tags.team }}"
        found = template.variables(self.made(Value("host/a", b"b"), **FULL))
        expected = "web-1.example.org b [192.0.2.10][2001:db8::10][198.51.100.7] shop"
        assert template.render(text.encode(), found).decode() == expected


class TestRendering:
    @pytest.mark.parametrize(
        ("text", "made"),
        [
            ("no template\n", "no template\n"),
            ("", ""),
            ("a\n\n", "a\n\n"),
            ("{{ a|tojson }} {{ 'é<&'|tojson }}", '[1, "x"] "é<&"'),
            ("{{ a }} {{ a|join(',') }} {{ a|length }}", "[1, 'x'] 1,x 2"),
            ("{% for k, v in d.items() %}{{ loop.index }}{{ k }}{{ v if loop.last else ';' }}{% endfor %}", "1b;2a1"),
            ("{% for x in a if x == 1 %}{{ x }}{% else %}none{% endfor %}", "1"),
            ("{% set n = namespace(n=0) %}{% for x in range(4) %}{% set n.n = n.n + x %}{% endfor %}{{ n.n }}", "6"),
            ("{% macro m(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ m(1) }}{{ m('a', y='b') }}", "<12><ab>"),
            ("{% macro m() %}({{ caller() }}){% endmacro %}{% call m() %}in{% endcall %}", "(in)"),
            ("{% set x %}a{{ 1 }}{% endset %}{{ x ~ '-' ~ 2 }}", "a1-2"),
            ("{% filter indent(2, first=true) %}a\nb{% endfilter %}", "  a\n  b"),
            ("{% with z = 5 %}{{ z }}{% endwith %}", "5"),
            ("{{ '%03d|%s|%%' % (7, 'x') }}", "007|x|%"),
            ("{{ x is defined }} {{ x|default('d') }} {{ d.z|default('e') }} {{ d.get('q', 'r') }}", "False d e r"),
            ("{{ 'a-b'.split('-')[1].upper().ljust(3, '.') }}{{ 7 // 2 ** 1 }}", "B..3"),
            ("{{ d['a'] + 1 }} {{ a[1:] }} {{ a[::-1]|first }} {{ 'x' in a }} {{ 1 < 2 < 3 }}", "2 ['x'] x True True"),
            ("{{ a|map('string')|list|tojson }} {{ d|dictsort|first|last }}", '["1", "x"] 1'),
            ("{{ 'a,b'|replace(',', ';') }} {{ 2.567|round(1) }} {{ [1, 2]|sum }}", "a;b 2.6 3"),
            ("{% raw %}{{ x }}{% endraw %}{# gone #}", "{{ x }}"),
            ("{{ '\\n\\u00e9' }}", "\né"),
        ],
    )  # fmt: skip
    def test_makes(self, text: str, made: str) -> None:
        assert render(text, a=[1, "x"], d={"b": 2, "a": 1}) == made

    def test_nothing_of_one_rendering_is_left_for_the_next(self) -> None:
        text = "{% set ns = namespace() %}{% set ns.x = v %}{{ ns.x }}"
        assert [render(text, v=n) for n in range(3)] == ["0", "1", "2"]
        assert "undefined" in fault(text).words

    def test_what_it_is_given_cannot_be_changed(self) -> None:
        given_list, given_dict = [1], {"a": 1}
        for text in ("{{ l.append(2) }}", "{{ d.update(b=1) }}", "{{ d.pop('a') }}", "{% set d.a = 2 %}"):
            fault(text, l=given_list, d=given_dict)
        assert (given_list, given_dict) == ([1], {"a": 1})


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "line", "words"),
        [
            ("a\n{{ nope }}", 2, "'nope' is undefined"),
            ("a\n\n{% for x in [1] %}\n{{ d.nope }}\n{% endfor %}", 4, "no attribute 'nope'"),
            ("{% macro m() %}\n{{ nope }}\n{% endmacro %}\n\n{{ m() }}", 2, "'nope' is undefined"),
            ("{{ d['nope'] }}", 1, "no attribute 'nope'"),
            ("{{", 1, "unexpected"),
            ("\n{% if %}", 2, "Expected an expression"),
            ("\n\n{% for x in y %}", 3, "end of template"),
            ("{{ x|nope }}", 1, "No filter named 'nope'"),
            ("{{ x is nope }}", 1, "No test named 'nope'"),
            ("a\nb\n{{ 1 / 0 }}", 3, "ZeroDivisionError"),
            ("{{ 'a' + 1 }}", 1, "TypeError"),
            ("{{ 'a b'|truncate(2) }}", 1, "AssertionError"),
            ("\n{% include 'x' %}", 2, "there is no include here"),
            ("{% extends 'x' %}", 1, "there is no extends here"),
            ("{% import 'x' as y %}", 1, "there is no import here"),
            ("{% block x %}{% endblock %}", 1, "there is no block here"),
            ("{% for x in [1] recursive %}{% endfor %}", 1, "no recursive loops"),
            ("{{ range(3)|map('string') }}", 1, "a generator is not text"),
            ("{{ namespace() }}", 1, "a Namespace is not text"),
            ("{{ [undefined_one] }}", 1, "'undefined_one' is undefined"),
        ],
    )  # fmt: skip
    def test_say_which_line_and_what(self, text: str, line: int, words: str) -> None:
        found = fault(text, d={}, x=1, y=[])
        assert found.line == line
        assert words in found.words
        assert str(found).startswith(f"line {line}: ")

    def test_of_syntax_are_seen_without_rendering(self) -> None:
        template.check(b"{{ nope }}")
        with pytest.raises(TemplateFault, match="line 1"):
            template.check(b"{{")
        with pytest.raises(TemplateFault, match="UTF-8"):
            template.check(b"\xff")


ESCAPES = [
    "''.__class__", "''['__class__']", "''|attr('__class__')", "d.__init__", "m.__globals__", "range.__self__",
    "ns.__dict__", "ns['__class__']", "loop.__class__", "d.get.__self__", "d.items.__self__", "namespace.__init__",
    "'{0.__class__}'.format(1)", "'{0.__class__}'|format(1)", "dict.mro()", "dict.fromkeys([1])", "(1).bit_length()",
    "'a'.encode()", "'a'.translate({})", "self._TemplateReference__context", "a.sort()", "lipsum()", "cycler(1)",
    "d|map(attribute='__class__')|list", "['']|map(attribute='__class__')|list", "['']|map('attr', '__class__')|list",
    "joiner()", "environment", "context", "'a'|random", "'a'|pprint",
]  # fmt: skip


@pytest.mark.parametrize("expression", ESCAPES)
def test_nothing_leads_out_of_the_sandbox(expression: str) -> None:
    text = "{% set ns = namespace(x=1) %}{% macro m() %}{% endmacro %}{% for a in [[1]] %}{{ EXPR }}{% endfor %}"
    found = fault(text.replace("EXPR", expression), d={"x": 1})
    assert "object at 0x" not in found.words


def again(expression: str) -> str:
    """A text that an expression of it takes the place of, sixty times."""
    return "{% set n = namespace(a='a') %}{% for i in range(60) %}{% set n.a = " + expression + " %}{% endfor %}"


def each(body: str) -> str:
    return "{% set a = 'a' * 200000 %}{% set b = 'a' * 200000 %}{% for i in range(10000) %}" + body + "{% endfor %}"


BOMBS = {
    "times": "{{ 'a' * 10**9 }}",
    "times, turned round": "{{ 10**9 * 'a' }}",
    "times of a list": "{{ [1] * 10**9 }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent with a star": "{{ '%*d' % (10**9, 1) }}",
    "percent of a name": "{{ '%(a(b)c)1000000000d' % {'a(b)c': 1} }}",
    "percent of much": "{% set a = 'a' * 200000 %}{{ '%(a)s%(a)s%(a)s%(a)s' % {'a': a} }}",
    "center": "{{ 'a'.center(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "a power": "{{ 10**(10**8) }}",
    "a large number": "{{ ('1' * 100000)|int(base=2) ** 2 }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(100) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "round": "{{ 1|round(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "indent by much": "{% set a = '\n' * 100000 %}{{ a|indent(900) }}",
    "a range": "{{ range(10**9)|list }}",
    "doubled by ~": "{% set a = 'a' %}" + "{% set a = a ~ a %}" * 60,
    "doubled by +": again("n.a + n.a"),
    "doubled by replace": again("n.a|replace('a', 'aa')"),
    "doubled by .replace": again("n.a.replace('a', 'aa')"),
    "doubled by join": again("[n.a, n.a]|join"),
    "doubled by .join": again("''.join([n.a, n.a])"),
    "doubled by a block": "{% set a %}a{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "a block in blocks": "{% filter upper %}" * 15 + "{{ 'a' * 200000 }}" * 8 + "{% endfilter %}" * 15,
    "lists": "{% set a = [1] %}" + "{% set a = [a, a, a, a] %}" * 30 + "{{ a }}",
    "lists, compared": "{% set a = [1] %}{% set b = [1] %}"
    + "{% set a = [a, a, a, a] %}{% set b = [b, b, b, b] %}" * 30
    + "{{ a == b }}",
    "dicts": "{% set a = {} %}" + "{% set a = {1: a, 2: a, 3: a} %}" * 30 + "{{ a|tojson }}",
    "dicts by dict()": "{% set a = {} %}" + "{% set a = dict(x=a, y=a, z=a) %}" * 30 + "{{ a|upper }}",
    "namespaces": "{% set a = namespace() %}"
    + "{% set b = namespace(x=a, y=a, z=a) %}{% set a = b %}" * 30
    + "{{ a|upper }}",
    "namespaces in a list": "{% set a = namespace() %}{% set b = [a] %}"
    + "{% set a = namespace(x=b, y=b) %}{% set b = [a, a] %}" * 30
    + "{{ b|upper }}",
    "namespaces as arguments": "{% set a = namespace() %}{% macro m() %}{{ varargs|upper }}{% endmacro %}"
    + "{% set b = namespace(x=a, y=a) %}{% set a = b %}" * 30
    + "{{ m(a) }}",
    "loops": "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for a in range(10000) %}{% for b in range(10000) if b < 0 %}{% endfor %}{% endfor %}",
    "loops of much": "{% for a in range(10000) %}" + "{% set x = a %}" * 2500 + "{% endfor %}",
    "loops of text": "{% for a in range(10000) %}" + "text " * 8000 + "{% endfor %}",
    "a block of text": "{% set x %}{% for a in range(10000) %}" + "text " * 8000 + "{% endfor %}{% endset %}",
    "slices": each("{% set c = a[1:] %}"),
    "comparisons": each("{{ a == b }}"),
    "sorts": each("{% set c = range(10000)|sort %}"),
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "calls without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a refund": each("{% set x = range(10000)|map('metashim weighed', -100000)|list %}"),
    "brackets": "{{ " + "(" * 20000 + "1",
    "blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "signs": "{{ " + "-" * 40000 + "1 }}",
    "dots": "{{ d" + ".a" * 20000 + " }}",
    "much to add": "{{ " + "1+" * 20000 + "1 }}",
    "a long number": "{{ " + "9" * 48000 + " }}",
}
GROWS = ("times", "percent", "doubled", "block", "text")


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_soon(text: str) -> None:
    assert len(text) < 64_000
    began = time.process_time()
    fault(text, d={})
    assert time.process_time() - began < 3.0  # 0.4 s, where nothing else runs


@pytest.mark.parametrize("text", [text for name, text in BOMBS.items() if any(one in name for one in GROWS)])
def test_a_bomb_costs_little_memory(text: str) -> None:
    template.check(b"x")
    tracemalloc.start()
    try:
        fault(text, d={})
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_large_template_is_rendered() -> None:
    text = "#cloud-config\nwrite_files:\n{% for n in range(300) %}- path: /f{{ n }}\n  content: |\n"
    text += "{{ c|indent(4, first=true) }}\n{% endfor %}"
    assert len(render(text, c="line one\nline two\n" * 20)) > 100_000


PIECES = st.lists(
    st.sampled_from([
        "{{", "}}", "{%", "%}", "{#", "#}", " for x in a ", " endfor ", " if a ", " endif ", " set x = ", " a ", " x ",
        "|", "join", "'", '"', "[", "]", "(", ")", "~", "*", "**", "%", "+", "-", "1", "0.5", ".", "upper", "\\", "\n",
        "in",
        "range(9)", "macro m()", "endmacro", "=", "é", "\x00", "raw", "endraw", ",", ":", "==", "not", "is", "defined",
        "loop.index", "namespace()", "{", "}",
    ]),
    max_size=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(PIECES.map("".join))
def test_whatever_is_written_is_rendered_or_is_a_fault(text: str) -> None:
    try:
        template.render(text.encode(), {"a": [1, "b", {"c": None}]})
    except TemplateFault as found:
        assert found.words
        assert "\n" not in found.words


def test_budget_is_each_renderings_own() -> None:
    loop = "{% for a in range(9000) %}{{ a }}{% endfor %}"
    assert len({render(loop) for _ in range(12)}) == 1


def test_processes_that_meet_no_template_do_without_jinja() -> None:
    script = "import sys, shim.metadata.compose, shim.rehearsal; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"jinja2", "yaml", "email.parser"} & set(run.stdout.split())


def test_there_is_one_sandbox_without_a_loader() -> None:
    assert Sandbox().loader is None
