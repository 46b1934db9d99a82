# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the report package: ``gpuckpt-report`` or ``python -m gpuckpt_report``.

Commands import what they need themselves: pandas and SQLAlchemy take half a second, and to take records in needs neither.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gpuckpt_report import DATABASE_URL_VARIABLE, PROJECT
from gpuckpt_report.errors import ReportError
from gpuckpt_report.store import RunFolder, find_run

Action = Callable[[argparse.Namespace], int]
if TYPE_CHECKING:
    from gpuckpt_report.analysis import RunAnalysis

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

RUNS = PROJECT / "reports" / "runs"
PUBLISHED = PROJECT / "reports" / "published"
EXIT_BAD_INPUT = 1
EXIT_REJECTED = 3
EXIT_WORSE = 4
EXIT_UNDECIDED = 5


def ingest(arguments: argparse.Namespace) -> int:
    """Validate and append what the nodes sent; exit 3 if something was refused (the rest is stored all the same)."""
    run = _run(arguments)
    result = run.ingest(arguments.files)
    print(f"{run.path}: {result.added} records added, {result.known} known, {len(result.rejected)} rejected")
    for reason in result.rejected:
        print(f"rejected: {reason}", file=sys.stderr)
    return EXIT_REJECTED if result.rejected else 0


def native_tables(arguments: argparse.Namespace) -> int:
    """Print what the native benches measured as Markdown, a table for each size of memory."""
    from gpuckpt_report import native

    for memory, table in native.tables(native.read(arguments.samples)).items():
        print(f"{memory}:\n\n{table.markdown()}\n")
    return 0


def render_run(arguments: argparse.Namespace) -> int:
    """Write report.html, report.md and records.csv."""
    from gpuckpt_report import render

    run = _run(arguments)
    if arguments.finished:
        run.finish(datetime.now(UTC))
    result = _analyse(arguments, run)
    paths = render.write(run, result)
    if arguments.summary:
        _print_summary(run, result)
    else:
        print(*paths, sep="\n")
    return 0


def summary(arguments: argparse.Namespace) -> int:
    """Print the table of lanes of each host."""
    run = _run(arguments)
    _print_summary(run, _analyse(arguments, run))
    return 0


def validate(arguments: argparse.Namespace) -> int:
    """Check manifest and records of a run against the schema."""
    run = _run(arguments)
    manifest = run.manifest()
    print(f"{run.path}: manifest of {manifest.run_id} and {len(run.records())} records are valid")
    return 0


def compare_runs(arguments: argparse.Namespace) -> int:
    """Tell which lanes became faster or slower from one side to another; a gate for CI.

    Exit status: 0 no lane became slower, and a change of 10 % would have been found; 4 a lane became slower, fails now
    or is gone; 5 it cannot be told; 1 the sides did not measure the same thing.
    """
    from gpuckpt_report import compare

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
        print(json.dumps(compare.document(comparison), indent=2, ensure_ascii=False))
    else:
        print(compare.table(comparison).plain(), *compare.sentences(comparison), sep="\n")
    if comparison.alarms:
        return EXIT_WORSE
    return EXIT_UNDECIDED if comparison.undecided else 0


def publish_run(arguments: argparse.Namespace) -> int:
    """Copy a finished run of committed code, with its records, manifest and report, to reports/published/NAME."""
    from gpuckpt_report import publish

    run = _run(arguments)
    target = publish.publish(run, _analyse(arguments, run), arguments.name, arguments.published)
    print(f"{target}: commit it, and run `make readme-table`")
    return 0


def readme_table(arguments: argparse.Namespace) -> int:
    """Rewrite the headline section of README, and the reports of all published runs, from their records."""
    from gpuckpt_report import analysis, database, publish

    folders = sorted(path.parent for path in arguments.published.glob("*/manifest.json"))
    engine = database.open_database("sqlite://")
    analyses = {folder: analysis.analyse(engine, RunFolder(folder)) for folder in folders}
    publish.update_readme(arguments.readme, analyses)
    publish.render_anew(analyses)
    print(f"{arguments.readme}: headline of {len(folders)} published runs; their reports are rendered anew")
    return 0


def _run(arguments: argparse.Namespace) -> RunFolder:
    return find_run(arguments.run, arguments.runs)


def _print_summary(run: RunFolder, result: RunAnalysis) -> None:
    from gpuckpt_report import tables
    from gpuckpt_report.headline import headline

    for host in result.hosts:
        print(f"{host.host}: {headline(host, result.metric_name)}\n\n{tables.lanes(host).plain()}\n")
    if result.fake:
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
    from gpuckpt_report.compare import ALLOWABLE

    kinds = text.split(",")
    unknown = [kind for kind in kinds if kind not in ALLOWABLE]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} cannot be allowed; choose from {', '.join(ALLOWABLE)}")
    return kinds


def _analyse(arguments: argparse.Namespace, run: RunFolder) -> RunAnalysis:
    from gpuckpt_report import analysis, database

    url = arguments.database or database.default_url(run.path.parent)
    return analysis.analyse(database.open_database(url), run)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="gpuckpt-report", description="Reports made of the records of benchmark runs.")
    top.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs (default: %(default)s)")
    top.add_argument(
        "--database", help=f"database URL (default: ${DATABASE_URL_VARIABLE}, else runs.sqlite with the runs)"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_command(commands, "ingest", ingest).add_argument(
        "files", nargs="*", type=Path, help="more .json or .jsonl files"
    )
    rendering = _run_command(commands, "render", render_run)
    rendering.add_argument("--summary", action="store_true", help="print the summary instead of the files' paths")
    rendering.add_argument("--finished", action="store_true", help="note in the manifest that the run ends now")
    _run_command(commands, "summary", summary)
    _run_command(commands, "validate", validate)
    comparing = _run_command(commands, "compare", compare_runs)
    comparing.add_argument("after", nargs="?", help="the later run; runs of a side are joined by commas")
    comparing.add_argument("--control", metavar="LANE", help="a lane that did not change between the sides")
    comparing.add_argument(
        "--rerun",
        metavar="OLD=NEW",
        action="append",
        type=_lane_pair,
        help="compare two lanes of one run, as old and new",
    )
    comparing.add_argument(
        "--allow",
        metavar="KIND,…",
        type=_allowed,
        default=[],
        help="what may differ: gpu, machine, server, weights, lanes, gone",
    )
    comparing.add_argument("--junit", type=Path, metavar="FILE", help="write the result as JUnit XML, too")
    comparing.add_argument("--json", action="store_true", help="print JSON instead of the table")
    publishing = _run_command(commands, "publish", publish_run)
    publishing.add_argument("name", help="folder to make in reports/published")
    native = _command(commands, "native-tables", native_tables)
    native.add_argument("samples", nargs="+", type=Path, help=".jsonl file of bench_restore.py or gpu_bench.py")
    table = _command(commands, "readme-table", readme_table)
    table.add_argument("--readme", type=Path, default=PROJECT / "README.md", help="default: %(default)s")
    for command in (publishing, table):
        command.add_argument("--published", type=Path, default=PUBLISHED, help="default: %(default)s")
    return top


def _command(commands: Commands, name: str, action: Action) -> argparse.ArgumentParser:
    description = (action.__doc__ or "").strip()
    command = commands.add_parser(name, help=description, description=description)
    command.set_defaults(action=action)
    return command


def _run_command(commands: Commands, name: str, action: Action) -> argparse.ArgumentParser:
    command = _command(commands, name, action)
    command.add_argument("run", help="run id, folder of a run, or `latest`")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors that the user can mend end in one message and exit status 1."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.action(arguments))
    except ReportError as error:
        print(f"gpuckpt-report: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
