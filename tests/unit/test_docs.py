"""README is in step with the code: settings, verbs, exit codes, drop reasons, examples, files, `make` targets."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import click
import msgspec
import pytest

from shim import cli, errors
from shim.access import AccessLog
from shim.config import parse, settings
from shim.control import api
from shim.core.exchange import Caller, Request
from shim.core.policy import Family
from shim.core.verdict import Verdict
from shim.identity import file as mapping
from shim.metadata import document
from shim.metadata.network import Network
from shim.metrics import FAMILIES
from tests.unit.control_memory import Memory

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands_of(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every verb by its words, those of groups among them."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands_of(cli.cli))
VERBS = sorted(COMMANDS)
SECTIONS = [
    "What it is not",
    "Quick start",
    "How it works",
    "Assumptions",
    "Verbs",
    "Settings",
    "Drop reasons",
    "Access log",
    "Metrics",
    "What is measured",
    "Testing",
]


def lines_of(text: str) -> Iterator[tuple[str, int]]:
    """Each line with its heading's rank; 0 for what is none, as a root's prompt in a block of code."""
    code = False
    for line in text.splitlines():
        code ^= line.startswith("```")
        hashes = len(line) - len(line.lstrip("#"))
        yield line, 0 if code else hashes


def section(title: str) -> str:
    """The text under a heading, those of lower rank included."""
    found: list[str] = []
    own = 0
    for line, rank in lines_of(README):
        if rank and rank <= own:
            break
        if own:
            found.append(line)
        elif rank and line.lstrip("# ") == title:
            own = rank
    assert found, title
    return "\n".join(found)


def rows(text: str) -> list[list[str]]:
    """The cells of a text's table rows; an escaped bar is no border."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_sections_are_in_order():
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS


def test_settings():
    table = [row for row in rows(section("Settings")) if row[0].startswith("`")]
    assert table == [[f"`{s.name}`", s.type, f"`{s.default}`", s.sentence] for s in settings()]


def verb_row(verb: str) -> list[str]:
    (row,) = [row for row in rows(section("Verbs")) if re.match(rf"`{verb}[ `]", row[0])]
    return row


def test_no_verb_is_invented():
    told = [row[0].strip("`").split() for row in rows(section("Verbs").split("Exit status")[0])[1:]]
    assert sorted(verb_of(words) for words in told) == VERBS


def verb_of(words: list[str]) -> str:
    """The verb that a command line begins with."""
    return next(verb for verb in (words[0], " ".join(words[:2])) if verb in COMMANDS)


@pytest.mark.parametrize("verb", VERBS)
def test_verb(verb):
    command = COMMANDS[verb]
    row = verb_row(verb)
    assert row[1] == command.get_short_help_str(200).rstrip(".")
    options = {name for param in command.params if isinstance(param, click.Option) for name in param.opts}
    assert set(re.findall(r"-{1,2}[a-z][a-z-]*", row[2])) == options - {"--json"}
    assert ("--json" in options) == (verb != "agent"), "README says that each but agent has --json"
    for param in command.params:
        if isinstance(param.type, click.Choice):
            assert "\\|".join(param.type.choices) in " ".join(row)


def test_global_options():
    names = {name for param in cli.cli.params for name in param.opts} | {"-h", "--help"}
    assert all(f"{name}" in section("Verbs") for name in names)


def subclasses(family: type) -> list[type]:
    return [kind for child in family.__subclasses__() for kind in (child, *subclasses(child))]


def test_exit_codes():
    table = rows(section("Verbs").split("Exit status")[1].split("###")[0])[1:]
    assert [" ".join(row) for row in table] == list(cli._CODES)
    codes = {kind.exit_code for kind in (errors.MetashimError, *subclasses(errors.MetashimError))}
    assert codes <= {int(row[0]) for row in table}


def test_drop_reasons():
    table = [(row[0], row[1].strip("`")) for row in rows(section("Drop reasons")) if row[0].isdecimal()]
    assert table == [(str(verdict.value), verdict.label) for verdict in Verdict]
    assert all(row[2] for row in rows(section("Drop reasons")) if row[0].isdecimal())


def test_metrics():
    table = [row for row in rows(section("Metrics")) if row[0].startswith("`")]
    told = [(row[0].strip("`"), tuple(re.findall(r"`(\w+)`", row[1])), row[2]) for row in table]
    assert told == [(name, labels, text) for name, (_, labels, text) in FAMILIES.items()]


def test_access_log():
    lines: list[str] = []
    parent = ((b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)
    request = Request(b"GET", b"/latest/meta-data/instance-id", headers=parent)
    caller = Caller(7, 1, UUID("c0ffee00-1111-4222-8333-444455556666"), Family.V4)
    access = AccessLog(lines.append, 1)
    access.request(0.0, caller, "blue", request, 200, 19, 0.000214, "embedded", True)
    (example,) = [block for block in blocks("text") if '"instance"' in block]
    assert example.replace("\n ", "").strip() == lines[0]
    fields = [name for row in rows(section("Access log"))[1:] for name in re.findall(r"`(\w+)`", row[0])]
    assert fields == list(json.loads(lines[0]))


def test_control_api_resources():
    table = [row for row in rows(section("The control API")) if "/v1/" in row[1]]
    paths = [(row[0].split(", "), re.findall(r"`([^`]+)`", row[1])) for row in table]
    told = {(method, re.sub(r"<.*?>", "<>", path)) for methods, found in paths for method in methods for path in found}
    known = {(f"/v1/{name}", method) for name, methods in api._RESOURCES.items() for method in methods}
    assert told == {(method, re.sub(r"<.*?>", "<>", path)) for path, method in known}


def test_control_api_parameters():
    """Every query parameter of a resource is in its row, as `?name=`."""
    table = [row for row in rows(section("The control API")) if "/v1/" in row[1]]
    for name, methods in api._RESOURCES.items():
        path = re.sub(r"<.*?>", "<>", f"/v1/{name}")
        row = next(r for r in table if path in re.sub(r"<.*?>", "<>", " ".join(re.findall(r"`([^`]+)`", r[1]))).split())
        wanted = {parameter for _, parameters in methods.values() for parameter in parameters}
        assert wanted <= set(re.findall(r"`[?&]?(\w+)=?`", row[2])), name


def test_control_api_examples():
    """What curl would send in each example is answered."""
    lines = [line for block in blocks("console") for line in block.splitlines() if "http://metashim/" in line]
    assert len(lines) > 5
    for line in lines:
        words = iter(shlex.split(line.removeprefix("# ")))
        method, body, headers, url = b"GET", b"", (), ""
        for word in words:
            if word in ("-X", "-d", "-T", "-H", "--unix-socket"):
                value = next(words)
                method = value.encode() if word == "-X" else b"PUT" if word == "-T" else method
                body = value.encode() if word == "-d" else b"{}" if word == "-T" else body
                if word == "-H":
                    name, _, given = value.partition(": ")
                    headers = ((name.lower().encode(), given.encode()),)
            elif word.startswith("http"):
                url = word.removeprefix("http://metashim")
        path, _, query = url.partition("?")
        request = Request(method, path.encode(), query.encode(), headers, body)
        answer = asyncio.run(api.Api(Memory()).handle(request))
        assert answer.status < 300, line
        assert (answer.parts is not None) == bool(headers), line


def test_document_fields():
    told = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(section("Documents")))))
    assert set(document.Document.__struct_fields__) <= told
    inner = " ".join(row[0] for row in rows(section("Documents")) if "[]." in row[0])
    assert set(re.findall(r"\.(\w+)`", inner)) == set(Network.__struct_fields__)


def test_examples_are_accepted():
    (example,) = blocks("json")
    assert document.decode(example.encode()).networks
    assert set(msgspec.json.decode(example)) <= set(document.Document.__struct_fields__)
    config, ports, backends = blocks("toml")
    assert parse(config.encode(), "README.md").control.group == "operators"
    assert parse(backends.encode(), "README.md").forward.routes["/"] == "nova"
    assert len(mapping.parse(ports.encode())) == 1


def test_commands_name_verbs():
    """Every `metashim …` line of a console block is a verb with options that it has."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    used = [re.split(r" +", line.removeprefix("# "))[1:] for line in lines if line.startswith("# metashim ")]
    assert len(used) > 5
    for words in used:
        verb = verb_of(words)
        options = {name for param in COMMANDS[verb].params for name in param.opts}
        assert {word for word in words[len(verb.split()) :] if re.match("-[^ ]", word)} <= options, verb


def test_files_exist():
    words = set(re.findall(r"`((?:\.ci|bench|docs|rules|shim|systemd|tests|vagrant)/[\w./-]+)`", README))
    assert len(words) > 4
    made = {"bench/result.json"}
    assert [word for word in sorted(words - made) if not (ROOT / word).exists()] == []
    tiers = set(re.findall(r"`(unit|bpf|contract|netns|fuzz|clients|nova|backends|vm|vagrant)`", section("Testing")))
    assert tiers == {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"lab", "__pycache__"}
    assert (ROOT / "systemd" / "metashim.service").exists()


def test_make_targets():
    targets = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    table = [(row[0], row[1]) for row in rows(section("Testing")) if row[0].startswith("`make")]
    assert table == [(f"`make {name}`", words) for name, words in targets]
    assert set(re.findall(r"`?make ([a-z-]+)`", README)) <= {name for name, _ in targets}


def test_packages():
    listed = re.search(r"dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    names = re.findall(r'"([a-z0-9-]+)>', listed[1])
    assert names and all(name in section("Quick start") for name in [*names, "bcc"])
