# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import synthetic

from gpuckpt_report import __main__ as cli
from gpuckpt_report.analysis import fleet, stats
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.show import fleet_page, fleet_text, render

NAMES = [f"node{number:02}" for number in range(1, 31)]
SLOW, FAILING, SILENT, LOST, TORN = "node17", "node03", "node05", "node07", "node09"
TARGET_PAGE_BYTES = 120_000
VOID = {"meta", "br", "link", "img"}


class Balance(HTMLParser):
    """Checks that every element is closed in its turn, and collects links."""

    def __init__(self):
        super().__init__()
        self.open, self.errors, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name == "href"]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))


def measured(record, lane):
    return record["lane"] == lane and record["kind"] == "restore" and not record["warmup"]


def troubled(records):
    """One host slow in a lane, one with a failure, one where a lane never passes, one never reached, one lost on the way."""
    for record in records:
        host = record["host"]
        if host == LOST or (host == TORN and record["seq"] > 20):
            continue
        if host == SLOW and measured(record, "podman-mapped"):
            record = record | {"t": {name: 1.6 * value for name, value in record["t"].items()}, "phases": {}}
        failing = host == FAILING and measured(record, "sleep1-mapped") and record["iteration"] == 2
        if failing or (host == SILENT and measured(record, "podman-stock")):
            record = record | {"status": "failed", "reason": "timeout", "message": "it <hung> | twice", "phases": {}}
        yield record


@pytest.fixture
def troubled_run(fake_run):
    records = list(troubled(synthetic.fleet_records(NAMES)))
    return fake_run(records, **synthetic.fleet_manifest(NAMES))


@pytest.fixture
def page(troubled_run):
    fleet_page.write(troubled_run, fleet.survey(troubled_run))
    return (troubled_run.path / "report.html").read_text()


def clusters(generator, hosts, starts=5, between=0.2, within=0.05):
    """Logarithms of starts on hosts that differ: a row a host."""
    return generator.normal(0, between, (hosts, 1)) + generator.normal(0, within, (hosts, starts))


@pytest.mark.parametrize("hosts", [6, 12, 30])
def test_the_interval_of_a_fleet_covers_where_starts_taken_as_independent_do_not(hosts):
    generator = np.random.default_rng(hosts)
    covered, naive, repeats = 0, 0, 400
    for _ in range(repeats):
        seconds = np.exp(clusters(generator, hosts))
        covered += stats.median_interval([stats.median(list(row)) for row in seconds]).contains(1.0)
        naive += stats.median_interval(list(seconds.ravel())).contains(1.0)
    assert covered / repeats > 0.92
    assert naive / repeats < 0.85


@pytest.mark.parametrize("hosts", [6, 12, 40])
def test_the_interval_of_a_ratio_over_hosts_covers(hosts):
    generator = np.random.default_rng(hosts)
    repeats = 250
    covered = sum(
        stats.clustered_ratio(list(2 * np.exp(generator.normal(0, 0.1, hosts))), seed).interval.contains(2.0)
        for seed in range(repeats)
    )
    assert covered / repeats > 0.91


def test_a_bootstrap_in_parts_is_that_of_one_piece(monkeypatch):
    ratios = list(np.exp(np.random.default_rng(1).normal(0, 0.1, 50)))
    whole = stats.clustered_ratio(ratios, seed=3)
    monkeypatch.setattr(stats, "DRAWN_AT_ONCE", 1_000)
    parts = stats.clustered_ratio(ratios, seed=3)
    assert parts.value == whole.value
    assert parts.interval.low == pytest.approx(whole.interval.low, rel=0.01)
    assert stats.clustered_ratio(ratios[:5]).interval is None


def test_spread_between_and_within_hosts_is_found_again():
    logs = clusters(np.random.default_rng(5), 400, starts=8, between=0.08, within=0.03)
    found = fleet.spread([list(np.exp(row)) for row in logs])
    assert found.between == pytest.approx(0.08, rel=0.1)
    assert found.within == pytest.approx(0.03, rel=0.05)
    alike = fleet.spread([list(np.exp(row)) for row in clusters(np.random.default_rng(6), 40, 8, 0.0, 0.03)])
    assert alike.between < 0.01


def test_spread_is_not_told_of_few_hosts_or_starts():
    assert fleet.spread([[1.0, 1.1, 1.2]] * 5) == fleet.Spread(None, pytest.approx(0.0913, abs=0.001))
    assert fleet.spread([[1.0]] * 30) == fleet.Spread(None, None)


@pytest.mark.parametrize("hosts", [6, 30, 200])
def test_among_hosts_alike_an_outlier_is_named_in_few_fleets(hosts):
    generator = np.random.default_rng(hosts)
    repeats = 200
    alarms = 0
    for _ in range(repeats):
        medians = {str(number): value for number, value in enumerate(np.exp(generator.normal(0, 0.1, hosts)))}
        alarms += bool(fleet.outliers("lane", medians, 1))
    assert alarms / repeats < 0.1


@pytest.mark.parametrize(("factor", "word"), [(1.6, "slow"), (0.5, "fast")])
def test_an_outlier_is_named_however_many_hosts_there_are(factor, word):
    generator = np.random.default_rng(2)
    medians = {f"node{number}": value for number, value in enumerate(np.exp(generator.normal(0, 0.04, 100)))}
    medians["node42"] = factor
    (found,) = fleet.outliers("lane", medians, 4)
    assert found.host == "node42"
    assert found.ratio == pytest.approx(factor, rel=0.03)
    assert ("slow" if found.ratio > 1 else "fast") == word


def test_hosts_count_once_and_lanes_are_compared_on_the_hosts_that_ran_both(fake_run):
    names = NAMES[:8]
    run = fake_run(synthetic.fleet_records(names), **synthetic.fleet_manifest(names))
    found = fleet.survey(run)
    mapped = next(lane for lane in found.lanes if lane.name == "podman-mapped")
    assert (mapped.hosts, mapped.n, mapped.n_failed) == (8, 40, 0)
    assert mapped.median == stats.median(list(mapped.medians.values()))
    assert mapped.interval == stats.median_interval(list(mapped.medians.values()))
    assert mapped.speedup.interval.low < mapped.speedup.value < mapped.speedup.interval.high
    # what makes a host slow makes both lanes slow, so the ratio is known better than either
    width = mapped.speedup.interval.high / mapped.speedup.interval.low
    assert width < mapped.interval.high / mapped.interval.low


def test_below_six_hosts_there_are_values_and_no_interval(fake_run):
    names = NAMES[:5]
    run = fake_run(synthetic.fleet_records(names), **synthetic.fleet_manifest(names))
    found = fleet.survey(run)
    assert all(lane.interval is None and not lane.outliers for lane in found.lanes)
    assert all(lane.speedup is None or lane.speedup.interval is None for lane in found.lanes)
    assert "no interval below 6 hosts" in fleet_text.headline(found)
    row = next(row for row in fleet_text.lanes(found).rows if row[0] == "cold")
    assert row[3].count(",") == 4


def test_lost_failing_and_slow_hosts_are_named_the_gravest_first(troubled_run):
    found = fleet.survey(troubled_run)
    assert found.lost == [LOST, TORN]
    told = fleet_text.look(found)
    assert [host for host, _ in told] == [LOST, TORN, SILENT, SLOW, FAILING]
    texts = dict(told)
    assert "never reached" in texts[LOST]
    assert re.search(r"LOST on the way; measurements are missing: cold has \d of 5", texts[TORN])
    assert "podman-stock never passed (5 × timeout)" in texts[SILENT]
    assert re.search(r"slow: 1\.[56]\d times the fleet's median in podman-mapped", texts[SLOW])
    assert "sleep1-mapped 1 × timeout" in texts[FAILING]


def test_a_lane_that_never_passes_on_a_host_is_not_the_best(troubled_run):
    found = fleet.survey(troubled_run)
    assert "podman-stock" not in [lane.name for lane in fleet.sound(found)]
    assert fleet_text.headline(found).startswith("sleep1-mapped: time to first token 1.")
    assert "It failed 1 of " in fleet_text.headline(found)


def test_the_page_of_thirty_hosts_is_small_sound_and_the_same_each_time(troubled_run, page):
    assert len(page.encode()) < TARGET_PAGE_BYTES
    balance = Balance()
    balance.feed(page)
    assert (balance.errors, balance.open) == ([], [])
    assert "<script" not in page
    assert "it <hung>" not in page
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(charts) == 4
    assert any(f"{SLOW} +5" in (text.text or "") for chart in charts for text in chart.iter("text"))
    for host in (LOST, TORN, SILENT, SLOW, FAILING):
        assert host in page
    assert "fake records: nothing here was measured" in page
    fleet_page.write(troubled_run, fleet.survey(troubled_run))
    assert (troubled_run.path / "report.html").read_text() == page


def test_links_lead_to_files_that_are_there(troubled_run, page):
    balance = Balance()
    balance.feed(page)
    targets = [link for link in balance.links if not link.startswith("#")]
    assert f"hosts/{SLOW}.html" in targets
    assert all((troubled_run.path / target).is_file() for target in targets)
    assert len(list((troubled_run.path / "hosts").iterdir())) == fleet_page.HOST_PAGES
    assert not (troubled_run.path / "hosts" / f"{LOST}.html").exists()
    host_page = (troubled_run.path / "hosts" / f"{SILENT}.html").read_text()
    assert "it &lt;hung&gt; | twice" in host_page
    assert SLOW not in host_page


def test_what_hosts_do_not_have_in_common_is_told(page):
    assert "15 × 6.0-fake; 15 × 6.1-fake" in page
    assert "Fake CPU" not in page


def test_the_csv_that_streams_is_the_one_of_a_single_host(fake_run):
    run = fake_run(synthetic.fleet_records(NAMES[:3]), **synthetic.fleet_manifest(NAMES[:3]))
    fleet_page.write(run, fleet.survey(run))
    assert (run.path / "records.csv").read_text() == render.records_csv(run.records())


def test_markdown_names_lanes_hosts_and_failures(troubled_run, page):
    markdown = (troubled_run.path / "report.md").read_text()
    assert "| sleep1-mapped |" in markdown.replace("\\-", "-")
    for host in (LOST, TORN, SILENT, SLOW, FAILING):
        assert host in markdown
    assert "Fake records" in markdown


@pytest.mark.parametrize("command", ["show", "summary"])
def test_the_console_answers_for_all_hosts_in_eighty_columns(troubled_run, capsys, command):
    assert cli.main([command, str(troubled_run.path)]) == 0
    output = capsys.readouterr().out
    assert max(len(line) for line in output.splitlines()) <= 80
    for host in (LOST, TORN, SILENT, SLOW, FAILING):
        assert host in output
    assert "node30" not in output


def test_one_host_is_shown_and_rendered_on_demand(troubled_run, page, capsys):
    path = str(troubled_run.path)
    assert not (troubled_run.path / "hosts" / "node30.html").exists()
    assert cli.main(["render", path, "--host", "node30"]) == 0
    assert "node30" in (troubled_run.path / "hosts" / "node30.html").read_text()
    capsys.readouterr()
    assert cli.main(["show", path, "--host", SILENT]) == 0
    output = capsys.readouterr().out
    assert f"{SILENT}: podman-stock iteration 1 (restore) failed: timeout" in output
    assert SLOW not in output
    for command in ("show", "summary", "render"):
        assert cli.main([command, path, "--host", "nobody"]) == cli.EXIT_BAD_INPUT
        assert "'nobody'" in capsys.readouterr().err


def test_a_fleet_as_json(troubled_run, capsys):
    assert cli.main(["show", "--json", str(troubled_run.path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["lost"] == [LOST, TORN]
    assert {"host": SILENT, "kind": "never_passed"}.items() <= document["findings"][2].items()
    assert len(document["hosts"]) == 30


def test_a_fleet_with_bad_hosts_is_no_success(troubled_run, capsys):
    assert cli.main(["check", str(troubled_run.path)]) == cli.EXIT_UNSOUND
    output = capsys.readouterr().out
    for host in (LOST, TORN, SILENT):
        assert f"{host}: " in output
    assert SLOW not in output


def test_many_hosts_are_drawn_in_columns_and_their_page_stays_small(fake_run):
    names = [f"node{number:03}" for number in range(120)]
    run = fake_run(synthetic.fleet_records(names, iterations=2), **synthetic.fleet_manifest(names, iterations=2))
    fleet_page.write(run, fleet.survey(run))
    html = (run.path / "report.html").read_text()
    assert 'class="column"' in html
    assert len(html.encode()) < TARGET_PAGE_BYTES


def test_a_published_fleet_has_the_page_of_a_fleet(fake_run, analyse):
    run = fake_run(synthetic.fleet_records(NAMES[:2]), **synthetic.fleet_manifest(NAMES[:2]))
    fleet_page.write_report(run, analyse(run))
    assert "Hosts that need a look" in (run.path / "report.html").read_text()
    assert isinstance(RunFolder(run.path).records(), list)
