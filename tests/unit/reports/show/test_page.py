# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the report can be read: on a phone, by those who see colours alike, by newcomers, and whatever users wrote."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import synthetic
from markdown_it import MarkdownIt
from project import ROOT

from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.show import render, subject
from gpuckpt_report.show.charts.canvas import CHARACTER, LAYOUTS
from gpuckpt_report.show.phase_classes import CLASSES, PHASES, SCRIPT, named
from gpuckpt_report.text.markdown import escaped

PROJECT = ROOT
CSS = (render.TEMPLATES / "report.css").read_text()
PHONE, DESKTOP = 390, 1280
LEAST_TEXT = 11
NASTY = "a|b <i>c</i> *d* _e_ `f` [g](h) ~~i~~ $j$ &lt; \\| # k"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The page of each published run, made anew by this code."""
    from gpuckpt_report.analysis import run as analysis

    pages = {}
    for manifest in sorted((PROJECT / "reports/published").glob("*/manifest.json")):
        folder = tmp_path_factory.mktemp("published") / manifest.parent.name
        folder.mkdir()
        for name in ("manifest.json", "records.jsonl"):
            (folder / name).write_bytes((manifest.parent / name).read_bytes())
        run = RunFolder(folder)
        render.write(run, analysis.analyse(run))
        pages[folder.name] = (folder / "report.html").read_text()
    return pages


def charts(html, layout):
    """The charts of a page in a layout, with the width of their viewBox."""
    found = [
        ElementTree.fromstring(text) for text in re.findall(rf'<svg class="chart {layout}.*?</svg>', html, re.DOTALL)
    ]
    return [(chart, float(chart.get("viewBox").split()[2])) for chart in found]


def rules(media=None):
    """The declarations of the style sheet outside of any media query, or inside one."""
    blocks = re.findall(r"@media ([^{]+)\{\n(.*?)\n\}", CSS, re.DOTALL)
    if media is None:
        return re.sub(r"@media [^{]+\{\n.*?\n\}", "", CSS, flags=re.DOTALL)
    return "\n".join(body for query, body in blocks if media in query)


def margin(css):
    """Pixels at each side of the page."""
    rem = re.search(r"body \{[^}]*padding: [\d.]+rem ([\d.]+)rem", css)[1]
    return float(rem) * 16


def text_sizes():
    sizes = [float(size) for size in re.findall(r"svg [^{}]*\{[^}]*font-size: ([\d.]+)px", CSS)]
    assert sizes
    return sizes


def test_text_of_charts_is_legible_on_a_phone_and_at_the_narrowest_wide_page(published):
    limit = int(re.search(r"max-width: (\d+)px\) \{\n  svg\.wide \{ display: none; \} svg\.narrow", CSS)[1]) + 1
    assert PHONE < limit < DESKTOP
    for name, html in published.items():
        for layout, screen, css in (("narrow", PHONE, rules("max-width: 599px")), ("wide", limit, rules())):
            found = charts(html, layout)
            assert found, name
            for _, width in found:
                assert min(text_sizes()) * (screen - 2 * margin(css)) / width >= LEAST_TEXT


def test_names_of_lanes_stay_and_no_text_leaves_its_chart(published):
    for name, html in published.items():
        for layout in LAYOUTS:
            for chart, width in charts(html, layout.name):
                texts = list(chart.iter("text"))
                assert any(text.get("class").startswith("label") for text in texts) or "Drift" in chart[0].text
                for text in texts:
                    room = CHARACTER * len(text.text) * 0.95
                    left = float(text.get("x")) - room * {None: 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
                    assert left >= -1, (name, text.text)
                    assert left + room <= width + 1, (name, text.text)


def test_lanes_are_sorted_by_their_medians_in_chart_and_table(published):
    html = published["h200-defaults"]
    order = [
        "staged-best",
        "staged-provisioned",
        "podman-staged-best",
        "staged-provisioned-before",
        "plain-best (baseline)",
    ]
    chart = charts(html, "wide")[0][0]
    assert [text.text for text in chart.iter("text") if text.get("class").startswith("label")] == order
    table = html[html.index("<table>") : html.index("</table>")]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == order


def test_the_first_screen_says_what_where_and_what_came_of_it(published):
    header = published["h100-vllm"].split("<header>")[1].split("</header>")[0]
    for part in (
        "qwen2-1.5b in vLLM 0.25.1, NVIDIA H100 80GB HBM3",
        "no failures",
        "Compared: 7 ways to restore a checkpoint and a cold start",
        "95 % interval 659 ms … 757 ms</span>",
        "n = 10, 0 failed",
        "cannot be told apart from staged-best",
        "noise not known",
        "driver 580.159.04",
    ):
        assert part in header
    assert "no GPU" in published["cpu-reference-128mib"].split("</header>")[0]


def test_every_phase_that_is_produced_has_a_class():
    names = set()
    for records in (PROJECT / "reports/published").glob("*/records.jsonl"):
        for line in records.read_text().splitlines():
            names |= json.loads(line).get("phases", {}).keys()
    python = "\n".join(path.read_text() for path in (PROJECT / "module_utils/ckpt").rglob("*.py"))
    names |= set(re.findall(r"""\.phases\["([\w-]+)"\]""", python))
    names |= set(re.findall(r"""_Phase\(\w+, "([\w-]+)"\)""", python))
    names |= set(re.findall(r'"(prefetch-[\w-]+)": \(', python))
    plans = "".join(re.findall(r"_PHASES = _chain\((.*?)\n\)", python, re.DOTALL))
    names |= set(re.findall(r'\("(\w+)", Landmark', plans))
    c = "\n".join(path.read_text() for path in (PROJECT / "native").rglob("*.[ch]"))
    names |= set(re.findall(r'(?:span_log|gc_span)\("([\w-]+)"', c)) | set(re.findall(r'\.span = "([\w-]+)"', c))
    assert len(names) > 30
    assert {name for name in names if not name.startswith(SCRIPT)} - PHASES.keys() == set()
    assert named("script_pre_resume").phase_class in CLASSES
    assert named("from a later version").title == "from a later version"


def colours(css):
    """Custom properties that are plain colours."""
    return {name: tuple(bytes.fromhex(value)) for name, value in re.findall(r"--([a-z]+): #([0-9a-f]{6});", css)}


def contrast(one, other):
    """WCAG 2: the ratio of two colours' luminances."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("media", [None, "prefers-color-scheme: dark"])
def test_colours_are_few_and_have_contrast(media):
    known = colours(rules(media))
    assert len(CLASSES) <= 8
    filled = re.findall(r"rect\.k-(\w+) \{ fill: var\(--(\w+)\); \}", rules())
    assert {key for key, _ in filled} == {kind.key for kind in CLASSES}
    used = [known[variable] for _, variable in filled]
    assert len(set(used)) == len(used) <= 8
    for _, variable in filled:
        assert contrast(known[variable], known["paper"]) >= 3
    for key in {kind.key for kind in CLASSES} - {"rest"}:
        assert contrast(known[dict(filled)[key]], known["inside"]) >= 4.5, key
    for text in ("ink", "soft", "failed", "good", "accent"):
        for ground in ("paper", "card"):
            assert contrast(known[text], known[ground]) >= 4.5, (text, ground)
    assert contrast(known["sample"], known["paper"]) >= 3


def test_charts_use_no_colour_but_those_of_the_classes(published):
    keys = {kind.key for kind in CLASSES}
    for html in published.values():
        for text in re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL):
            assert not re.search(r'(?:fill|stroke)="(?!url\(#)', text)
            assert set(re.findall(r'class="k-(\w+)"', text)) <= keys


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.hrefs, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.hrefs += [attrs["href"]] if "href" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []


def test_links_lead_to_files_of_the_run_and_ids_are_unique(fake_run, analyse):
    run = fake_run()
    render.write(run, analyse(run))
    links = Links()
    links.feed((run.path / "report.html").read_text())
    assert {"records.jsonl", "records.csv", "manifest.json"} <= set(links.hrefs)
    for href in links.hrefs:
        assert href.removeprefix("#") in links.ids if href.startswith("#") else (run.path / href).is_file()
    assert len(links.ids) == len(set(links.ids))
    markdown = (run.path / "report.md").read_text()
    for file in re.findall(r"\]\(([^)]*)\)", markdown):
        assert (run.path / file).is_file()


def shown(text):
    """What a reader of Markdown sees, without markup; and the tags that it makes."""
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    plain = re.sub(r"<[^>]+>", "", html)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        plain = plain.replace(entity, character)
    return plain.strip(), set(re.findall(r"<(\w+)", html))


@pytest.mark.parametrize("text", [NASTY, "- x", "1. x", "# x", "> x", "=====", "---", "0.844", "+1", "a\nb", "\\"])
def test_markdown_shows_what_users_wrote(text):
    assert shown(escaped(text)) == (" ".join(text.split()), {"p"})
    table = f"| lane | s |\n| --- | ---: |\n| {escaped(text)} | 1 |"
    plain, tags = shown(table)
    assert tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert " ".join(text.split()) in plain


def test_the_markdown_report_shows_what_users_wrote(fake_run, analyse):
    records = synthetic.run_records()
    for record in records:
        if record["status"] == "failed":
            record["message"] = NASTY
    run = fake_run(records, description=NASTY, server={"kind": "vllm", "model": NASTY})
    render.write(run, analyse(run))
    plain, tags = shown((run.path / "report.md").read_text())
    assert plain.count(NASTY) >= 4
    assert not tags & {"i", "em", "code", "s", "del"}
    assert "&lt;i&gt;c&lt;/i&gt;" in (run.path / "report.html").read_text()


def test_paper_has_no_pages_of_digests():
    paper = rules("print")
    hidden = [selectors for selectors in re.findall(r"([^{}]+)\{ display: none; \}", paper) if "details" in selectors]
    assert ".manifest" in hidden[0]
    assert "svg.narrow" not in rules("print")
    assert re.search(r"@media screen and \(max-width: \d+px\) \{\n  svg\.wide", CSS)


def test_a_fleet_is_counted_by_hosts_and_gpus(fake_run, analyse):
    host = {"gpu": {"gpus": [{"name": "NVIDIA H200"}] * 2}}
    run = analyse(fake_run(hosts={"node1": host, "node2": host, "node3": {"gpu": "not told", "packages": ["x"]}}))
    assert subject.title(run).endswith(", 2 hosts with 2 × NVIDIA H200")
    assert subject.machine({"host": {"cpu": 3}, "gpu": [1]}) == "no GPU"
