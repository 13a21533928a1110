"""The command line: ``python -m dynarray info``."""

import argparse
import sys
from collections.abc import Sequence

from ._dispatch import BACKENDS
from ._info import backend_problems, collect, render


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is non-zero when a required backend is missing."""
    parser = argparse.ArgumentParser(prog="python -m dynarray")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print versions, backends, devices and caches, for a bug report")
    info.add_argument(
        "--require",
        choices=BACKENDS,
        action="append",
        default=[],
        help="fail when this backend is not available",
    )
    required = parser.parse_args(argv).require
    print(render(collect()))
    problems = backend_problems()
    missing = [name for name in required if problems[name] is not None]
    for name in missing:
        print(f"dynarray: backend {name!r} is required and not available: {problems[name]}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
