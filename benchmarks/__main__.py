"""The command line: ``python -m benchmarks run`` and ``python -m benchmarks report``."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dynarray._dispatch import BACKENDS

from . import report
from .cases import CASES
from .machine import usable_cores
from .run import Options, run
from .table import document, plain


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return _report() if arguments.command == "report" else _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="measure, print tables, write a results file")
    runs.add_argument("--backend", choices=BACKENDS, default="cpu")
    runs.add_argument(
        "--peers", action="store_true", help="time PyTorch in the same process (when it is installed)"
    )
    operators = sorted({case.operator for case in CASES})
    runs.add_argument("--operator", nargs="+", choices=operators, help="these only")
    runs.add_argument(
        "--threads", type=int, default=usable_cores(), help="default: the cores this process may use"
    )
    runs.add_argument(
        "--quick", action="store_true", help="tiny arrays: shows that everything runs, measures nothing"
    )
    runs.add_argument("--output", type=Path, help="default: benchmarks/results/<backend>-<date>...json")
    commands.add_parser("report", help="write results and the operator table into README and docs")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    peers = arguments.peers and find_spec("torch") is not None
    if arguments.peers and not peers:
        _say("no peers: PyTorch is not installed (extra: bench)")
    result = run(
        Options(
            arguments.backend, arguments.threads, tuple(arguments.operator or ()), peers, arguments.quick
        ),
        _say,
    )
    print(document(result, plain))
    quick = "quick" if arguments.quick else None
    marks = [arguments.backend, result["date"][:10], *(arguments.operator or ()), quick]
    name = f"{'-'.join(filter(None, marks))}.json"
    output = arguments.output or report.RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"written: {output}")
    return 0


def _report() -> int:
    changed = report.write()
    _say(f"updated: {', '.join(path.name for path in changed) or 'nothing'}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
