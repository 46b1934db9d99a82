# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import synthetic

from gpuckpt_report import __main__ as cli
from gpuckpt_report.errors import ReportError
from gpuckpt_report.show import publish, render
from gpuckpt_report.text.units import human_bytes, human_seconds, seconds, times

VOID = {"meta", "br", "link", "img"}


class Balance(HTMLParser):
    """Checks that every element is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open, self.errors = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))


@pytest.fixture
def rendered(fake_run, analyse):
    run = fake_run()
    render.write(run, analyse(run))
    return run.path


def test_html_is_well_formed_and_needs_nothing_from_outside(rendered):
    html = (rendered / "report.html").read_text()
    balance = Balance()
    balance.feed(html)
    assert (balance.errors, balance.open) == ([], [])
    assert "<script" not in html
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?https?:""", html)
    assert "default-src 'none'" in html


def test_charts_are_valid_svg_with_a_title_and_every_sample(rendered):
    html = (rendered / "report.html").read_text()
    charts = [ElementTree.fromstring(text) for text in re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL)]
    names = [chart.find("desc").get("id") for chart in charts]
    assert names == [
        f"{name}-node1-{layout}-desc"
        for name in ("distribution", "phases-restore-1", "phases-restore-2", "phases-cold-1", "drift", "sizes")
        for layout in ("wide", "narrow")
    ]
    # 4 lanes of 5 iterations, one of which failed; each dot tells its value
    for chart in charts[:2]:
        dots = [dot.find("title").text for dot in chart.iter("circle") if dot.find("title") is not None]
        assert len(dots) == 19
        assert all(re.fullmatch(r"iteration \d: [\d.]+ s", text) for text in dots)
        assert any("1 failed" in text.text for text in chart.iter("text"))


def test_bars_have_the_proportions_of_the_figures(rendered):
    html = (rendered / "report.html").read_text()
    chart = ElementTree.fromstring(re.search(r'<svg[^>]*"sizes.*?</svg>', html, re.DOTALL)[0])
    widths = {
        box.find("title").text: float(box.get("width")) for box in chart.iter("rect") if box.find("title") is not None
    }
    assert widths["GPU memory: 12.0 GiB"] / widths["GPU memory: 3.00 GiB"] == pytest.approx(4, 0.01)
    assert widths["GPU memory: 12.0 GiB"] / widths["memory of processes: 800 MiB"] == pytest.approx(
        12 * 1024 / 800, 0.01
    )


def test_what_comes_from_logs_is_escaped(rendered):
    html = (rendered / "report.html").read_text()
    assert "Error &lt;fake&gt;" in html
    assert "Fake &lt;CPU&gt;" in html
    assert "<fake>" not in html


def test_fake_records_are_marked_everywhere(rendered):
    assert "fake records: nothing here was measured" in (rendered / "report.html").read_text()
    assert "**Fake records: nothing here was measured.**" in (rendered / "report.md").read_text()


def test_failures_are_shown_with_reason_log_and_commands(rendered):
    html = (rendered / "report.html").read_text()
    for part in ("canary_differs", "podman container restore x", "(00.020) done"):
        assert part in html
    assert "| 1 canary\\_differs |" in (rendered / "report.md").read_text()


def test_the_floor_is_told_in_words_and_for_each_lane(rendered):
    html, markdown = ((rendered / name).read_text() for name in ("report.html", "report.md"))
    for part in (
        "CUDA context in a fresh process",
        "copy host to GPU, pinned",
        "48.4 GiB/s",
        "read of the checkpoint store",
    ):
        assert part in html
        assert part in markdown
    # 0.4 s and 12 GiB at 52 GB/s
    stock = next(line for line in markdown.splitlines() if line.startswith("| podman-stock (baseline)"))
    assert " 0.648 |" in stock
    assert "floor s" in markdown


def test_the_first_start_is_told(rendered):
    html, markdown = ((rendered / name).read_text() for name in ("report.html", "report.md"))
    assert "| podman-shared-0123abcd | 83.9 | 93.2 |" in markdown
    assert "<h3>First starts</h3>" in html
    assert "93.2" in html


def test_csv_has_a_row_per_record_with_phases(rendered):
    with (rendered / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 29
    restore = next(
        row for row in rows if row["lane"] == "podman-stock" and row["warmup"] == "False" and row["kind"] == "restore"
    )
    assert float(restore["T4_s"]) > float(restore["phase.criu_s"]) > 0
    assert float(restore["phase.criu_s"]) == pytest.approx(float(restore["T1_s"]) - 0.1)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (human_seconds, 0.0421, "42.1 ms"),
        (human_seconds, 0.1704, "170 ms"),
        (human_seconds, 0.9999, "1.00 s"),
        (human_seconds, 12.34, "12.3 s"),
        (human_seconds, 125, "2 min 5 s"),
        (human_seconds, -0.5, "-500 ms"),
        (human_bytes, 0, "0 B"),
        (human_bytes, 1023, "1023 B"),
        (human_bytes, 1023.9, "1.00 KiB"),
        (human_bytes, 1536, "1.50 KiB"),
        (human_bytes, 9.2e9, "8.57 GiB"),
        (human_bytes, 5e15, "4547 TiB"),
        (seconds, None, "–"),
        (seconds, 0.0412, "0.041"),
        (seconds, 7.654, "7.65"),
        (times, 10.44, "10.4×"),
    ],
)
def test_figures_as_people_read_them(function, value, text):
    assert function(value) == text


def real(document):
    """The same without the mark of a fake: what publishing would accept."""
    return document | {"fake": False}


@pytest.fixture
def publishable(fake_run, analyse):
    run = fake_run([real(record) for record in synthetic.run_records(failures=0)], fake=False)
    return run, analyse(run)


def test_publish_copies_the_truth_and_renders_it(publishable, tmp_path):
    run, result = publishable
    target = publish.publish(run, result, "cpu-test", tmp_path / "published")
    assert sorted(path.name for path in target.iterdir()) == [
        "manifest.json",
        "records.csv",
        "records.jsonl",
        "report.html",
        "report.md",
    ]
    assert (target / "records.jsonl").read_bytes() == run.records_path.read_bytes()
    with pytest.raises(ReportError, match="exists"):
        publish.publish(run, result, "cpu-test", tmp_path / "published")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fake": True}, "fake records"),
        ({"git": {"sha": "0" * 40, "dirty": True}}, "uncommitted changes"),
        ({"git": {"sha": None, "dirty": None}}, "names no commit"),
        ({"finished_at": None}, "not finished"),
        ({"iterations": 6}, "lane cold has 5 of 6 iterations on node1"),
        ({"controller": {"folder": str(publish.PROJECT)}}, "a path of this machine"),
    ],
)
def test_publish_refuses(fake_run, analyse, tmp_path, changes, reason):
    records = [real(record) for record in synthetic.run_records(failures=0)]
    run = fake_run(records, **({"fake": False} | changes))
    with pytest.raises(ReportError, match=re.escape(reason)):
        publish.publish(run, analyse(run), "x", tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_publish_refuses_one_fake_record_among_real_ones_and_a_bad_name(fake_run, analyse, tmp_path):
    records = [real(record) for record in synthetic.run_records(failures=0)]
    records[-1]["fake"] = True
    run = fake_run(records, fake=False)
    with pytest.raises(ReportError, match=r"(?s)fake records.*the name '\.\./x'"):
        publish.publish(run, analyse(run), "../x", tmp_path / "published")


def test_readme_table_is_rewritten_between_its_marks_only(publishable, tmp_path, capsys):
    run, result = publishable
    publish.publish(run, result, "cpu-test", tmp_path / "reports" / "published")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n<!-- headline:begin -->\nstale\n{publish.END}\nrest\n")
    arguments = ["readme-table", "--readme", str(readme), "--published", str(tmp_path / "reports" / "published")]
    assert cli.main(arguments) == 0
    first = readme.read_text()
    assert first.startswith("# Title\n")
    assert first.endswith("\nrest\n")
    assert "stale" not in first
    assert first.count("(reports/published/cpu-test/records.jsonl)") == 5
    assert cli.main(arguments) == 0
    assert readme.read_text() == first
    readme.write_text("no marks")
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    assert "headline:begin" in capsys.readouterr().err


def test_readme_shows_the_runs_that_its_mark_names_and_links_the_others(publishable, tmp_path, capsys):
    run, result = publishable
    published = tmp_path / "reports" / "published"
    for name in ("cpu-a", "cpu-b", "cpu-c"):
        publish.publish(run, result, name, published)
    readme = tmp_path / "README.md"
    mark = "<!-- headline:begin cpu-c cpu-a -->"
    readme.write_text(f"{mark}\n{publish.END}\n")
    arguments = ["readme-table", "--readme", str(readme), "--published", str(published)]
    assert cli.main(arguments) == 0
    text = readme.read_text()
    assert text.startswith(f"{mark}\n")
    assert [line.split("**")[1] for line in text.splitlines() if line.startswith("**")] == ["cpu-c", "cpu-a"]
    assert "Other published runs: [cpu-b](reports/published/cpu-b/report.md)." in text
    readme.write_text(f"<!-- headline:begin cpu-d -->\n{publish.END}\n")
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    assert "names cpu-d, which is not published (there are: cpu-a, cpu-b, cpu-c)" in capsys.readouterr().err


def test_a_mark_may_choose_the_lanes_of_a_run_and_a_page_may_lie_in_a_folder(publishable, tmp_path, capsys):
    run, result = publishable
    published = tmp_path / "reports" / "published"
    for name in ("cpu-a", "cpu-b"):
        publish.publish(run, result, name, published)
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text(f"<!-- headline:begin cpu-a:cold,podman-stock -->\n{publish.END}\n")
    arguments = ["readme-table", "--readme", str(page), "--published", str(published)]
    assert cli.main(arguments) == 0
    text = page.read_text()
    assert [line.split(" |")[0] for line in text.splitlines() if "](../reports" in line and line.startswith("|")] == [
        "| cold",
        "| podman-stock (baseline)",
    ]
    assert "[report](../reports/published/cpu-a/report.md)" in text
    assert "cpu-b" not in text, "a short table links no other runs"
    assert "faster than the baseline" not in text, "the sentence speaks of lanes that are not shown"
    page.write_text(f"<!-- headline:begin cpu-a:cold,podman-wrong -->\n{publish.END}\n")
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    assert "names podman-wrong, no lane of cpu-a" in capsys.readouterr().err


def test_command_line_from_ingest_to_summary(fake_run, capsys):
    run = fake_run()
    options = ["--runs", str(run.path.parent)]
    assert cli.main([*options, "ingest", "latest"]) == 0
    assert cli.main([*options, "render", "fake-run"]) == 0
    assert cli.main([*options, "summary", str(run.path)]) == 0
    output = capsys.readouterr().out
    assert "0 records added, 29 known, 0 rejected" in output
    assert re.search(r"podman-stock .* baseline", output)
    assert f"report: {run.path / 'report.html'}" in output
    assert cli.main([*options, "compare", "fake-run", "latest"]) == cli.EXIT_UNDECIDED
    assert cli.main([*options, "validate", "latest"]) == 0
    assert cli.main([*options, "publish", "latest", "x"]) == cli.EXIT_BAD_INPUT
    (run.incoming_path / "node1" / "000099-cold.json").write_text("{}")
    assert cli.main([*options, "ingest", "latest"]) == cli.EXIT_REJECTED
    assert "rejected: " in capsys.readouterr().err
