# SPDX-License-Identifier: GPL-3.0-or-later
"""The command gpuckpt-serve, which units and socket-activating programs start."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..errors import CkptError, os_errors_explained
from . import start, supervisor, wanted

IDLE_S = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 stopped as told, 1 the server ended by itself, 2 it could not be served."""
    parser = argparse.ArgumentParser(
        prog="gpuckpt-serve",
        description="Serve a server from its golden checkpoint; cold where that cannot be, saying why.",
    )
    parser.add_argument("name", nargs="?", help="name of a server that checkpoint.yml has described on this node")
    parser.add_argument(
        "--on-demand", action="store_true", help="serve the socket that systemd-socket-activate hands over"
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=IDLE_S,
        metavar="S",
        help=f"with --on-demand: stop after S seconds without a client ({IDLE_S:g})",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="serve at HOST:PORT, where nobody answers before the server is up (for programs that start servers)",
    )
    parser.add_argument(
        "--status", action="store_true", help="say as JSON what is served and what its checkpoint is, and end"
    )
    options = parser.parse_args(arguments)
    try:
        with os_errors_explained():
            if options.status:
                print(
                    json.dumps(
                        [_status(name) for name in ([options.name] if options.name else wanted.names())], indent=2
                    )
                )
                return supervisor.OK
            if options.name is None:
                parser.error("name a server, or ask for --status")
            if options.on_demand and options.listen:
                parser.error("--on-demand serves the socket that is handed over: leave --listen out")
            served = wanted.load(options.name)
            if options.on_demand:
                return supervisor.serve_on_demand(served, options.idle)
            if options.listen:
                return supervisor.serve_at(served, wanted.parse_address(options.listen))
            return supervisor.serve(served)
    except CkptError as error:
        supervisor.say(error.message)
        for line in error.log_lines:
            supervisor.say(f"  {line}")
        return supervisor.FAILED


def _status(name: str) -> dict[str, object]:
    """What is known of one server, for people and programs."""
    server = wanted.load(name)
    from . import history

    state, serving, starts = start.examine(server), supervisor.status(name), history.load(server)
    worth = None if state.golden is None else history.worth(state.golden, starts)
    return {
        "name": name,
        "serving": None if serving is None else asdict(serving),
        "golden": None if state.golden is None else asdict(state.golden),
        "misfits": state.misfits,
        "history": asdict(starts),
        "worth": None if worth is None else asdict(worth),
    }


if __name__ == "__main__":
    sys.exit(main())
