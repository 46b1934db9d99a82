# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``gpuckpt`` that read results: also ``python -m gpuckpt_report``, as plays call them.

Commands import what they need themselves: to take records in needs neither statistics nor templates nor SQLAlchemy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuckpt_report import DATABASE_URL_VARIABLE, PROJECT, VERSION
from gpuckpt_report.errors import ReportError
from gpuckpt_report.export import FORMATS
from gpuckpt_report.records.store import RunFolder, find_run, started_at
from gpuckpt_report.records.vocabulary import METRICS

Action = Callable[[argparse.Namespace], int]
if TYPE_CHECKING:
    from gpuckpt_report.analysis.fleet import Fleet
    from gpuckpt_report.analysis.run import RunAnalysis
    from gpuckpt_report.text.table import Table

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

RUNS = PROJECT / "reports" / "runs"
PUBLISHED = PROJECT / "reports" / "published"
PAGES = (PROJECT / "README.md", PROJECT / "docs" / "results.md")
WIDTH = 80
HOSTS_TOLD = 12
EXIT_BAD_INPUT = 1
EXIT_REJECTED = 3
EXIT_WORSE = 4
EXIT_UNDECIDED = 5
EXIT_UNSOUND = 6
EXIT_CHANGED = 7


def ingest(arguments: argparse.Namespace) -> int:
    """Validates and appends what the nodes sent; exit 3 if something was refused (the rest is stored all the same).

    A database that --database or the environment names is then loaded with the whole run.
    """
    run = _run(arguments)
    result = run.ingest(arguments.files)
    url = arguments.database or os.environ.get(DATABASE_URL_VARIABLE)
    if url:
        from gpuckpt_report.export import database

        database.load(database.open_database(url), run)
    print(f"{run.path}: {result.added} records added, {result.known} known, {len(result.rejected)} rejected")
    for reason in result.rejected:
        print(f"rejected: {reason}", file=sys.stderr)
    return EXIT_REJECTED if result.rejected else 0


def native_tables(arguments: argparse.Namespace) -> int:
    """Prints what the native benches measured as Markdown, a table for each size of memory."""
    from gpuckpt_report.show import native

    for memory, table in native.tables(native.read(arguments.samples)).items():
        print(f"{memory}:\n\n{table.markdown()}\n")
    return 0


def render_run(arguments: argparse.Namespace) -> int:
    """Writes report.html, report.md and records.csv; of many hosts also pages in hosts/. With --host, that page alone."""
    from gpuckpt_report.show import fleet_page, render

    run = _run(arguments)
    if arguments.finished:
        run.finish(datetime.now(UTC))
    if arguments.host:
        print(_write_host(run, arguments.host))
        return 0
    fleet = _fleet(arguments, run)
    if fleet is not None:
        paths = fleet_page.write(run, fleet)
        if arguments.summary:
            _print_fleet(run, fleet)
    else:
        result = _analyse(arguments, run)
        paths = render.write(run, result)
        if arguments.summary:
            _print_summary(run, result)
    if not arguments.summary:
        print(*paths, sep="\n")
    return 0


def _write_host(run: RunFolder, host: str) -> Path:
    from gpuckpt_report.show import fleet_page

    records = [record for record in run.stream() if record.host == host]
    if not records:
        raise ReportError(f"run {run.path.name} has no records of host {host!r}: `gpuckpt show RUN` names its hosts")
    return fleet_page.write_host(run, run.manifest(), host, records)


def list_runs(arguments: argparse.Namespace) -> int:
    """Lists the runs, newest first: when, how far, and what came of them."""
    from gpuckpt_report.show import overview

    entries = overview.runs(arguments.runs)
    _print_either(arguments, overview.runs_table(entries), [entry.document() for entry in entries])
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Shows what a run measured, where, and what came of it: headline, lanes, failures. Of many hosts, see --host."""
    from gpuckpt_report.show import overview

    run = _run(arguments)
    fleet = _fleet(arguments, run)
    if fleet is not None:
        return _show_fleet(arguments, run, fleet)
    result = _analyse(arguments, run, arguments.host)
    if arguments.json:
        _print_json(overview.document(result))
        return 0
    print(*overview.facts(result), sep="\n", end="\n\n")
    _print_summary(run, result)
    print(*(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in overview.failures(result)), sep="\n")
    return 0


def summary(arguments: argparse.Namespace) -> int:
    """Prints the headline and the table of lanes; of many hosts, those of all together."""
    from gpuckpt_report.show import overview

    run = _run(arguments)
    fleet = _fleet(arguments, run)
    if fleet is not None:
        return _show_fleet(arguments, run, fleet)
    result = _analyse(arguments, run, arguments.host)
    if arguments.json:
        _print_json(overview.document(result)["hosts"])
    else:
        _print_summary(run, result)
    return 0


def history(arguments: argparse.Namespace) -> int:
    """Shows a lane over all runs, oldest first, with the changes found and those that were accepted.

    Exit status with --check: 7 if no accepted shift explains a change, or the newest run has no good record of the lane.
    Else 0.
    """
    from gpuckpt_report.analysis import history as lanes

    path = arguments.accepted or arguments.runs / lanes.ACCEPTED_FILE
    accepted = lanes.read_accepted(path)
    folders = [RunFolder(path.parent) for path in sorted(arguments.runs.glob("*/manifest.json"), key=started_at)]
    runs = []
    for run in (folder for folder in folders if folder.records_path.is_file()):
        try:
            runs.append((run, _analyse(arguments, run)))
        except ReportError as error:
            print(f"gpuckpt: left out, as it cannot be read: {str(error).splitlines()[0]}", file=sys.stderr)
    found = lanes.histories(runs, arguments.lane, accepted, arguments.host, arguments.allow, arguments.metric)
    if not found:
        where = f" on {arguments.host}" if arguments.host else ""
        raise ReportError(
            f"no run in {arguments.runs} has a lane {arguments.lane!r}{where}: `gpuckpt show RUN` lists a run's lanes"
        )
    for line in lanes.unused(accepted, found):
        print(f"gpuckpt: {line}; see {path}", file=sys.stderr)
    if arguments.json:
        _print_json([lanes.document(one) for one in found])
    else:
        sentences = [line for one in found for line in lanes.sentences(one, path)]
        lines = [line if "\n" in line else textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in sentences]
        print(lanes.table(found).plain(WIDTH), *lines, sep="\n")
    return EXIT_CHANGED if arguments.check and any(one.alarms for one in found) else 0


def export(arguments: argparse.Namespace) -> int:
    """Prints a run for other programs: records as CSV, JSON or Parquet, the lanes' figures as OpenMetrics text."""
    from gpuckpt_report.export import replace_file

    content = _exported(arguments)
    if arguments.output is not None:
        replace_file(arguments.output, content)
    else:
        sys.stdout.buffer.write(content)
    return 0


def _exported(arguments: argparse.Namespace) -> bytes:
    if arguments.timestamps and arguments.format != "openmetrics":
        raise ReportError("--timestamps belongs to --format openmetrics")
    run = _run(arguments)
    if arguments.format == "openmetrics":
        from gpuckpt_report.export import openmetrics

        return openmetrics.text(_analyse(arguments, run), arguments.timestamps)
    if arguments.format == "parquet":
        from gpuckpt_report.export import parquet

        if arguments.output is None:
            raise ReportError("a Parquet file is not for a terminal: name it with --output FILE")
        return parquet.content(run.manifest(), run.records())
    if arguments.format == "csv":
        from gpuckpt_report.show import render

        return render.records_csv(run.records()).encode()
    lines = [record.model_dump_json() for record in run.records()]
    if arguments.format == "jsonl":
        return "".join(f"{line}\n" for line in lines).encode()
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def check(arguments: argparse.Namespace) -> int:
    """Says which hosts were lost, and which lanes have no good record; exit 6 if there are any."""
    from gpuckpt_report.show.headline import problems

    run = _run(arguments)
    fleet = _fleet(arguments, run)
    hosts = _analyse(arguments, run).hosts if fleet is None else fleet.hosts
    found = [problem for host in hosts for problem in problems(host)]
    print(*found, sep="\n", end="\n" if found else "")
    return EXIT_UNSOUND if found else 0


def validate(arguments: argparse.Namespace) -> int:
    """Checks manifest and records of a run against the schema."""
    run = _run(arguments)
    manifest = run.manifest()
    print(f"{run.path}: manifest of {manifest.run_id} and {sum(1 for _ in run.stream())} records are valid")
    return 0


def compare_runs(arguments: argparse.Namespace) -> int:
    """Tells which lanes became faster or slower from one side to another; a gate for CI.

    Exit status 0: no lane became slower, and a change of 10 % would have been found. 4: a lane became slower, fails now
    or is gone. 5: it cannot be told. 1: the sides did not measure the same thing.
    """
    from gpuckpt_report.analysis import compare

    if arguments.rerun:
        if arguments.after:
            raise ReportError("--rerun compares lanes of one run: give that run alone")
        comparison = compare.compare_within(_analyse(arguments, _run(arguments)), arguments.rerun)
    elif arguments.after is None:
        raise ReportError("give two sides to compare, or --rerun OLD=NEW for two lanes of one run")
    else:
        before, after = (_analyse_all(arguments, side) for side in (arguments.run, arguments.after))
        comparison = compare.compare(before, after, arguments.control, arguments.allow)
    if arguments.junit:
        arguments.junit.write_text(compare.junit(comparison), encoding="utf-8")
    if arguments.json:
        _print_json(compare.document(comparison))
    else:
        lines = [textwrap.fill(line, WIDTH) for line in compare.sentences(comparison)]
        print(compare.table(comparison).plain(WIDTH), *lines, sep="\n")
    if comparison.alarms:
        return EXIT_WORSE
    return EXIT_UNDECIDED if comparison.undecided else 0


def publish_run(arguments: argparse.Namespace) -> int:
    """Copies a finished run of committed code, with its records, manifest and report, to reports/published/NAME."""
    from gpuckpt_report.show import publish

    run = _run(arguments)
    target = publish.publish(run, _analyse(arguments, run), arguments.name, arguments.published)
    print(f"{target}: commit it, and run `make readme-table`")
    return 0


def readme_table(arguments: argparse.Namespace) -> int:
    """Rewrites the tables of README and docs/results.md, and the reports of all published runs, from their records."""
    from gpuckpt_report.analysis import run as analysis
    from gpuckpt_report.show import publish

    folders = sorted(path.parent for path in arguments.published.glob("*/manifest.json"))
    analyses = {folder: analysis.analyse(RunFolder(folder)) for folder in folders}
    for page in arguments.readme or PAGES:
        publish.update_page(page, analyses)
        print(f"{page}: tables of the published runs that its mark names")
    publish.render_anew(analyses)
    print(f"{len(folders)} published runs: their reports are rendered anew")
    return 0


def _run(arguments: argparse.Namespace) -> RunFolder:
    return find_run(arguments.run, arguments.runs)


def _print_either(arguments: argparse.Namespace, table: Table, documents: list[dict[str, Any]]) -> None:
    if arguments.json:
        _print_json(documents)
    else:
        print(table.plain(WIDTH))


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def summaries() -> list[tuple[str, str]]:
    """Each command with the first sentence of what it does."""
    return [(name, (action.__doc__ or "").strip().splitlines()[0]) for name, action in COMMANDS.items()]


def _print_summary(run: RunFolder, result: RunAnalysis) -> None:
    from gpuckpt_report.analysis.noise import judge
    from gpuckpt_report.show import tables
    from gpuckpt_report.show.headline import headline

    for host in result.hosts:
        sentence = textwrap.fill(f"{host.host}: {headline(host, result.metric_name)}", WIDTH)
        if host.lanes:
            sentence += "\n" + textwrap.fill(judge(host).sentence, WIDTH)
            sentence += "\n\n" + tables.lanes_narrow(host).plain(WIDTH)
            if served := [table.plain(WIDTH) for table in tables.served_narrow(host)]:
                sentence += "\n\n" + "\n\n".join([*served, textwrap.fill(tables.served_note(host), WIDTH)])
        print(sentence, end="\n\n")
    if result.fake:
        print("fake records: nothing here was measured")
    report = run.path / "report.html"
    if report.is_file():
        print(f"report: {report}")


def _show_fleet(arguments: argparse.Namespace, run: RunFolder, fleet: Fleet) -> int:
    from gpuckpt_report.show import fleet_text, overview

    if arguments.json:
        _print_json(fleet_text.document(fleet))
        return 0
    if arguments.command == "show":
        print(*(textwrap.fill(line, WIDTH) for line in overview.facts(fleet)), sep="\n", end="\n\n")
    _print_fleet(run, fleet)
    return 0


def _print_fleet(run: RunFolder, fleet: Fleet) -> None:
    """The headline, the lanes, and the hosts that need a look."""
    from gpuckpt_report.show import fleet_text

    headline = f"{len(fleet.hosts)} hosts: {fleet_text.loss(fleet)} {fleet_text.headline(fleet)}"
    print(textwrap.fill(headline, WIDTH))
    print(textwrap.fill(fleet_text.noisy(fleet), WIDTH), end="\n\n")
    print(fleet_text.lanes_narrow(fleet).plain(WIDTH), end="\n\n")
    looked_at = fleet_text.look(fleet)
    for host, text in looked_at[:HOSTS_TOLD]:
        print(textwrap.fill(f"{host}: {text}", WIDTH, subsequent_indent="  "))
    if len(looked_at) > HOSTS_TOLD:
        print(f"and {len(looked_at) - HOSTS_TOLD} more hosts: see the report, or `gpuckpt show RUN --json`")
    print("one host: `gpuckpt show RUN --host HOST`")
    if fleet.fake:
        print("fake records: nothing here was measured")
    report = run.path / "report.html"
    if report.is_file():
        print(f"report: {report}")


def _analyse_all(arguments: argparse.Namespace, names: str) -> list[RunAnalysis]:
    """The runs of one side, given by names that commas join; each counts once."""
    folders = {run.path.resolve(): run for run in (find_run(name, arguments.runs) for name in names.split(","))}
    return [_analyse(arguments, run) for run in folders.values()]


def _lane_pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, two lanes of the run")
    return old, new


def _allowed(text: str) -> list[str]:
    from gpuckpt_report.analysis.compare import ALLOWABLE

    kinds = text.split(",")
    unknown = [kind for kind in kinds if kind not in ALLOWABLE]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} cannot be allowed; choose from {', '.join(ALLOWABLE)}")
    return kinds


def _analyse(arguments: argparse.Namespace, run: RunFolder, host: str | None = None) -> RunAnalysis:
    """The figures of all hosts, or of one alone."""
    from gpuckpt_report.analysis import run as analysis

    return analysis.analyse(run, [host] if host else None)


def _fleet(arguments: argparse.Namespace, run: RunFolder) -> Fleet | None:
    """The figures of all hosts together; None for a run on one host, or where --host names one."""
    from gpuckpt_report.analysis import fleet

    alone = getattr(arguments, "host", None) or not fleet.has_many_hosts(run.manifest())
    return None if alone else fleet.survey(run)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="gpuckpt", description="Reports made of the records of benchmark runs.")
    top.add_argument("--version", action="version", version=f"gpuckpt {VERSION}")
    top.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs (default: %(default)s)")
    top.add_argument(
        "--database", help=f"URL of a database that `ingest` loads, too (default: ${DATABASE_URL_VARIABLE}, else none)"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {name: _command(commands, name, action) for name, action in COMMANDS.items()}
    for name in ("ingest", "render", "show", "summary", "check", "validate", "compare", "publish", "export"):
        made[name].add_argument("run", help="run id, folder of a run, or `latest`")
    for name in ("show", "summary", "render"):
        made[name].add_argument("--host", help="look at this host alone, of a run on several")
    for name in ("runs", "show", "summary", "compare", "history"):
        made[name].add_argument("--json", action="store_true", help="print JSON instead of text")
    for name in ("publish", "readme-table"):
        made[name].add_argument("--published", type=Path, default=PUBLISHED, help="default: %(default)s")
    made["ingest"].add_argument("files", nargs="*", type=Path, help="more .json or .jsonl files")
    made["render"].add_argument("--summary", action="store_true", help="print the summary instead of the files' paths")
    made["render"].add_argument("--finished", action="store_true", help="note in the manifest that the run ends now")
    _add_history_options(made["history"])
    _add_export_options(made["export"])
    made["publish"].add_argument("name", help="folder to make in reports/published")
    made["native-tables"].add_argument(
        "samples", nargs="+", type=Path, help=".jsonl file of bench_restore.py or gpu_bench.py"
    )
    made["readme-table"].add_argument(
        "--readme", type=Path, action="append", help="page with the marks (default: README.md and docs/results.md)"
    )
    _add_compare_options(made["compare"])
    return top


def _command(commands: Commands, name: str, action: Action) -> argparse.ArgumentParser:
    description = (action.__doc__ or "").strip()
    command = commands.add_parser(name, help=description.splitlines()[0], description=description)
    command.set_defaults(action=action)
    return command


def _add_history_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("lane")
    command.add_argument("--host", help="this host alone")
    command.add_argument("--metric", choices=METRICS, help="default: what the newest run measures")
    command.add_argument("--check", action="store_true", help="exit 7 on a change that nobody accepted")
    command.add_argument(
        "--accepted", type=Path, metavar="FILE", help="accepted shifts (default: accepted-shifts.yml of the runs)"
    )
    _add_allow(command, "gpu, machine, server, weights, lanes")


def _add_allow(command: argparse.ArgumentParser, kinds: str) -> None:
    command.add_argument("--allow", metavar="KIND,…", type=_allowed, default=[], help=f"what may differ: {kinds}")


def _add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=FORMATS, default="csv", help="default: %(default)s")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="replace this file, as a whole, instead of printing"
    )
    command.add_argument(
        "--timestamps",
        action="store_true",
        help="OpenMetrics: samples with the time of the run, for `promtool tsdb create-blocks-from openmetrics`",
    )


def _add_compare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("after", nargs="?", help="the later run; runs of a side are joined by commas")
    command.add_argument("--control", metavar="LANE", help="a lane that did not change between the sides")
    command.add_argument(
        "--rerun",
        metavar="OLD=NEW",
        action="append",
        type=_lane_pair,
        help="compare two lanes of one run, as old and new",
    )
    _add_allow(command, "gpu, machine, server, weights, lanes, gone")
    command.add_argument("--junit", type=Path, metavar="FILE", help="write the result as JUnit XML, too")


COMMANDS: dict[str, Action] = {
    "runs": list_runs,
    "show": show,
    "summary": summary,
    "compare": compare_runs,
    "history": history,
    "export": export,
    "render": render_run,
    "ingest": ingest,
    "check": check,
    "validate": validate,
    "publish": publish_run,
    "readme-table": readme_table,
    "native-tables": native_tables,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that the user can fix end in one message and exit status 1."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.action(arguments))
    except ReportError as error:
        print(f"gpuckpt: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
