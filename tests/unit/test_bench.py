"""What the bench makes of what it measured."""

import json

import pytest

from bench import __main__ as command
from bench import load
from bench.figures import COLUMNS, Figure, Limit, middle_and_tail, percentile

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
        assert load.read_wrk(WRK) == load.Run(59368.12, 407.0, 1990.0)

    @pytest.mark.parametrize("line", ["  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 9\n"])
    def test_a_run_with_failed_requests_is_no_figure(self, line):
        with pytest.raises(RuntimeError, match="failed"):
            load.read_wrk(WRK + line)

    def test_anything_else_is_not_wrks(self):
        with pytest.raises(RuntimeError, match="something else"):
            load.read_wrk("unable to connect to 192.0.2.1:8001 Connection refused\n")


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
        assert "nonsense: the rows are packets, path, requests, toggle, enrol, memory" in said
