"""What the bench makes of what it measured."""

import asyncio
import json
import socket
import threading
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench import __main__ as command
from bench import answer, cold, forward, isolation, load, site, slow, syns
from bench.batch import Batch
from bench.figures import COLUMNS, Figure, Limit, middle_and_tail, percentile
from shim import config as configs

WRK = """Running 2s test @ http://192.0.2.1:8001/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   450.10us   90.00us   2.10ms   80.00%
    Req/Sec    60.00k     1.00k   61.00k    66.67%
  Latency Distribution
     50%  407.00us
     75%  500.00us
     90%  600.00us
     99%    1.99ms
  120000 requests in 2.00s, 33.00MB read
Requests/sec:  59368.12
Transfer/sec:     16.00MB
"""


class TestLimits:
    @pytest.mark.parametrize("value,met", [(36.9, True), (37, True), (37.1, False)])
    def test_over_the_baseline(self, value, met):
        assert Figure("a", value, "ns", 32, "empty", Limit("over", most=5)).met is met

    @pytest.mark.parametrize("value,met", [(49, False), (50, True), (200, True)])
    def test_of_the_ratio(self, value, met):
        assert Figure("a", value, "/s", 100, "bare", Limit("ratio", least=0.5)).met is met

    @pytest.mark.parametrize("value,met", [(2, True), (2.01, False)])
    def test_of_the_value_whatever_the_baseline(self, value, met):
        assert Figure("a", value, "ms", 0.1, "by hand", Limit("value", most=2)).met is met

    def test_none_is_neither_met_nor_missed(self):
        assert Figure("a", 1, "ms").met is None

    @pytest.mark.parametrize("of", ["ratio", "over"])
    def test_on_a_baseline_that_is_not_there_is_missed(self, of):
        assert Figure("a", 1, "ms", None, "", Limit(of, most=5)).met is False


def test_a_ratio_needs_a_baseline():
    assert Figure("a", 3, "ms", 2).ratio == 1.5
    assert Figure("a", 3, "ms").ratio is None
    assert Figure("a", 3, "ms", 0).ratio is None


def test_percentiles_are_values_that_were_seen():
    values = list(range(100, 0, -1))
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7], 99) == 7
    with pytest.raises(ValueError):
        percentile([], 50)


def test_median_and_tail_are_held_to_the_limit_both():
    middle, tail = middle_and_tail("x", [1.0] * 90 + [9.0] * 10, "ms", [0.5], "hand", Limit("value", most=2))
    assert (middle.value, middle.met, middle.ratio) == (1.0, True, 2.0)
    assert (tail.value, tail.met, tail.ratio) == (9.0, False, 18.0)


def test_a_row_has_a_cell_for_each_column():
    row = Figure("requests/s", 28558.4, "/s", 59368.0, "bare server", Limit("ratio", least=0.5)).as_row()
    assert row == ("requests/s", "28,558 /s", "59,368 bare server", "0.48", "ratio ≥ 0.5", "MISSED")
    assert len(Figure("a", 1, "ms").as_row()) == len(COLUMNS)


def test_figures_as_json_hold_ratio_limit_and_verdict():
    figure = Figure("a", 6, "ms", 2, "hand", Limit("value", most=7)).as_json()
    assert json.loads(json.dumps(figure)) == figure
    assert (figure["ratio"], figure["limit"], figure["met"]) == (3, "≤ 7", True)


class TestWrk:
    def test_rate_and_latencies_in_microseconds(self):
        assert load.read_wrk(WRK) == load.Run(59368.12, 407.0, 1990.0, 120000)

    @pytest.mark.parametrize("line", ["  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 9\n"])
    def test_a_run_with_failed_requests_is_no_figure(self, line):
        with pytest.raises(RuntimeError, match="failed"):
            load.read_wrk(WRK + line)

    def test_anything_else_is_not_wrks(self):
        with pytest.raises(RuntimeError, match="something else"):
            load.read_wrk("unable to connect to 192.0.2.1:8001 Connection refused\n")


def test_the_cpu_of_a_process_is_read_behind_its_name_whatever_that_is():
    stat = "7 (a) b 9 9 9) S 1 7 7 0 -1 4194560 10 0 0 0 250 125 3 4 20 0 1 0 99 1000 100"
    assert load.read_cpu(stat, 100) == 3.75


class TestForwarding:
    def figures(self, connections=32, body=200, ours=(18_000, 4_000), haproxy=(30_000, 2_000)):
        def turns(rate, p99):
            return [forward.Turn(load.Run(rate * f, 100, p99 * f, 1000), 0.04 * f) for f in (9, 1, 0.1)]

        found = forward._figures(connections, body, [turns(*ours), turns(*haproxy), turns(60_000, 1_000)])
        return {figure.name: figure for figure in found}

    def test_medians_beside_haproxys_and_those_of_nobody_between(self):
        figures = self.figures()
        what = "forwarded, 200 bytes, 32 kept connections"
        rate, plain = figures[f"requests/s, {what}"], figures[f"requests/s, {what} (directly)"]
        assert (rate.value, rate.baseline, rate.baseline_name) == (18_000, 30_000, "haproxy")
        assert (plain.value, plain.baseline, plain.limit) == (18_000, 60_000, None)
        assert figures[f"CPU s of the forwarder for 1,000 requests, {what}"].value == pytest.approx(0.04)
        assert len(figures) == 7

    @pytest.mark.parametrize("ours,missed", [((16_500, 4_000), 0), ((16_499, 4_000), 1), ((16_500, 4_001), 1)])
    def test_rate_and_tail_are_held_to_haproxys(self, ours, missed):
        assert [figure.met for figure in self.figures(ours=ours).values()].count(False) == missed

    @pytest.mark.parametrize("connections,body", [(1, 200), (32, 16_384)])
    def test_other_connections_and_bodies_are_not(self, connections, body):
        figures = self.figures(connections, body, ours=(1, 1e9))
        assert {figure.met for figure in figures.values()} == {None}

    def test_a_turn_without_a_forwarder_costs_it_nothing(self):
        assert forward.Turn(load.Run(1, 1, 1, 1), 0.0).cpu_per_thousand == 0


class TestAnswers:
    def test_each_body_has_its_path_and_size(self, tmp_path):
        text = answer._settings(tmp_path, ["127.0.0.1", "192.0.2.1"])
        for body in answer.BODIES:
            assert f"file {tmp_path / str(body)} if {{ path_end {answer.path_of(body)} }}" in text
            assert (tmp_path / str(body)).stat().st_size == body
        binds = [line.split()[1] for line in text.splitlines() if "bind" in line]
        assert binds == ["127.0.0.1:8080", "192.0.2.1:8080"]


class TestSyns:
    @pytest.mark.parametrize("port", [1024, 40_001, 65_535])
    def test_a_frame_is_a_whole_and_right_syn(self, port):
        frame = syns.syn(port)
        read = Ether(frame)
        assert (read.src, read[IP].src, read[IP].dst) == (site.MAC, site.GUEST.partition("/")[0], "169.254.169.254")
        assert (read[TCP].sport, read[TCP].dport, str(read[TCP].flags)) == (port, 80, "S")
        sums = read[IP].chksum, read[TCP].chksum
        del read[IP].chksum, read[TCP].chksum
        again = Ether(bytes(read))
        assert (again[IP].chksum, again[TCP].chksum) == sums
        assert bytes(again) == frame

    def test_a_batch_sends_each_frame_once(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        frames = [b"one", b"t\0wo", b"three" * 99]
        with ours, theirs:
            assert Batch(frames).send(ours) == len(frames)
            assert [theirs.recv(9999) for _ in frames] == frames


class TestSlow:
    async def _flood(self, answer, seconds):
        """What a server that answers so saw of the openings, in the order that they came, and the flooder."""
        openings, seen = [], []

        async def serve(reader, writer):
            try:
                head = await reader.readuntil(b"\r\n")
                openings.append(head)
                writer.write(answer)
                seen.append(await reader.read())
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        flooder = slow.Slow("127.0.0.1", server.sockets[0].getsockname()[1])
        await flooder.run(seconds)
        server.close()
        return openings, flooder

    def test_holds_what_is_left_open_with_heads_and_bodies(self, monkeypatch):
        monkeypatch.setattr(slow, "WANTED", 6)
        monkeypatch.setattr(slow, "INTERVAL", 0.05)
        openings, flooder = asyncio.run(self._flood(b"", 0.5))
        assert sorted(openings) == [b"GET / HTTP/1.1\r\n"] * 2 + [b"POST / HTTP/1.1\r\n"] * 4
        assert flooder.most == 6

    def test_opens_again_what_was_answered(self, monkeypatch):
        monkeypatch.setattr(slow, "WANTED", 2)
        openings, _ = asyncio.run(self._flood(b"HTTP/1.1 429 x\r\n\r\n", 0.3))
        assert len(openings) > 4


class TestVictim:
    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\n"

    @pytest.mark.parametrize("cut", [0, 1, 20, len(HEAD) - 1])
    def test_an_answer_whose_head_is_not_whole_wants_more(self, cut):
        assert isolation.whole_length(self.HEAD[:cut]) == cut + 1

    @pytest.mark.parametrize("body", [b"", b"ab", b"abcde"])
    def test_the_length_of_an_answer_is_that_of_head_and_body(self, body):
        assert isolation.whole_length(self.HEAD + body) == len(self.HEAD) + 5

    @pytest.mark.parametrize("head", [HEAD.replace(b"200", b"429"), HEAD.replace(b"Content-Length", b"X")])
    def test_another_answer_fails(self, head):
        with pytest.raises(RuntimeError, match="the victim got"):
            isolation.whole_length(head)

    def test_reads_an_answer_that_comes_in_parts(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(self.HEAD + b"ab")
            threading.Timer(0.02, theirs.sendall, [b"cde"]).start()
            isolation.ask(ours)
            assert theirs.recv(9999) == isolation.REQUEST

    @pytest.mark.parametrize("sent,what", [(HEAD + b"ab", "ended early"), (HEAD + b"abcdef", "more than")])
    def test_less_or_more_than_an_answer_fails(self, sent, what):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(RuntimeError, match=what):
                isolation.ask(ours)


class TestFloods:
    def test_of_requests_counts_whatever_became_of_them(self):
        assert isolation.read_rate(WRK + "  Non-2xx or 3xx responses: 3\n") == 59368.12
        with pytest.raises(RuntimeError, match="something else"):
            isolation.read_rate("")

    def test_figures_hold_the_tails_to_the_calm_ones(self):
        flood = isolation.Flood("SYNs", "/s", None, [])
        calm = isolation.Seen([1.0] * 98 + [10.0] * 2, [2.0], [])
        seen = isolation.Seen([1.0] * 98 + [20.1] * 2, [4.0], [7, 9, 8])
        found = isolation._figures(flood, seen, calm)
        assert [(figure.value, figure.met) for figure in found] == [
            (8, None), (1.0, None), (20.1, False), (4.0, None), (4.0, True),
        ]  # fmt: skip

    def test_the_victim_keeps_within_what_one_instance_may_do(self):
        limits = configs.Config()
        assert limits.proxy.request_rate > 1 / isolation.PACE
        assert limits.datapath.connection_rate > 1 / isolation.PACE / isolation.NEW_EVERY


@pytest.mark.parametrize("identity", [site.FILE, cold.ALL.format(remote="unix:/tmp/db.sock")], ids=["file", "all"])
@pytest.mark.parametrize(
    "settings", [site.DEFAULTS, site.RAISED, site.DEFAULTS + cold.SPREAD], ids=["defaults", "raised", "spread"]
)
def test_sites_settings_are_a_configuration(settings, identity):
    text = site.configuration("bench1", Path("/tmp/x"), settings + site.forwarded(8080, 99), identity)
    config = configs.parse(text.encode(), "it")
    assert config.forward.routes == {"/": "nova", "/signed": "http"}
    assert config.forward.requests_per_instance == 99
    for backend in (config.nova, config.http):
        assert backend.addresses == ("http://127.0.0.1:8080",)
        assert backend.secret_file == "/tmp/x/secret"


class TestCommand:
    @pytest.fixture(autouse=True)
    def as_root(self, monkeypatch):
        monkeypatch.setattr("os.geteuid", lambda: 0)

    @pytest.fixture
    def run(self, monkeypatch, tmp_path):
        def run(rows, *words):
            monkeypatch.setattr(command, "ROWS", rows)
            status = command.main([*words, "--json", str(tmp_path / "result.json"), "--only", ",".join(rows)])
            return status, json.loads((tmp_path / "result.json").read_text())

        return run

    def test_a_missed_limit_is_told_and_fails_only_when_strict(self, run, capsys):
        rows = {"a": lambda: [Figure("slow", 3, "ms", None, "", Limit("value", most=2))]}
        assert run(rows)[0] == 0
        assert "limits missed: slow" in capsys.readouterr().out
        assert run(rows, "--strict")[0] == 1

    def test_a_row_that_fails_takes_no_other_with_it(self, run):
        def broken():
            raise OSError("no such thing")

        status, result = run({"broken": broken, "well": lambda: [Figure("quick", 1, "ms")]})
        assert status == 1
        assert result["not_measured"] == {"broken": "OSError: no such thing"}
        assert [figure["name"] for figure in result["figures"]] == ["quick"]

    def test_an_unknown_row_is_named_with_those_there_are(self, capsys):
        with pytest.raises(SystemExit):
            command.main(["--only", "packets,nonsense"])
        said = capsys.readouterr().err
        rows = "packets, path, requests, forward, isolation, watch, cold, boot, storm, toggle, enrol, memory"
        assert f"nonsense: the rows are {rows}" in said
