"""``python -m benchmarks run``, ``drawn``, ``first-calls``, ``growth``, ``kernels`` and ``report``."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynarray._dispatch import BACKENDS
from rawkernels import ptx

from . import kernels, kernels_table
from .cases import CASES
from .harness import drawn, first_calls, growth, run
from .harness.machine import today, usable_cores
from .report import pages, shapes
from .report.table import Render, document, first_calls_document, growth_table, plain


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    commands = {
        "run": _run,
        "drawn": _drawn,
        "first-calls": _first_calls,
        "growth": _growth,
        "kernels": _kernels,
        "report": _report,
    }
    return commands[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="measure, print tables, write a results file")
    runs.add_argument(
        "--no-first-calls", action="store_true", help="leave out first calls, which take a process each"
    )
    draws = commands.add_parser("drawn", help="measure shapes drawn at random, which nobody tuned for")
    draws.add_argument("--number", type=int, default=drawn.NUMBER, help="shapes of each operator")
    draws.add_argument("--seed", type=int, default=0, help="other shapes; the results file names it")
    firsts = commands.add_parser("first-calls", help="measure first calls alone, on empty kernel caches")
    grows = commands.add_parser("growth", help="measure how time and memory grow with each size")
    for command in (runs, draws):
        command.add_argument(
            "--peers", action="store_true", help="time PyTorch in the same process (when it is installed)"
        )
        command.add_argument(
            "--compile-s",
            type=float,
            metavar="SECONDS",
            help="for compiling the peers of a row, for each of two passes; default: "
            + ("600" if command is runs else f"{drawn.COMPILE_S:g}"),
        )
    for command in (runs, draws, firsts, grows):
        _add_common(command)
    counts = commands.add_parser("kernels", help="count what each kernel costs, without a GPU")
    counts.add_argument(
        "--only",
        nargs="+",
        default=(),
        help="print cases with one of these in operator or title; write nothing",
    )
    counts.add_argument("--lines", action="store_true", help="by line of the sources, too")
    commands.add_parser("report", help="write results and the operator table into README and docs")
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    """What every command takes that measures operators."""
    operators = sorted({case.operator for case in CASES})
    command.add_argument("--backend", choices=BACKENDS, default="cpu")
    command.add_argument("--operator", nargs="+", choices=operators, help="these only")
    command.add_argument(
        "--threads", type=int, default=usable_cores(), help="default: the cores this process may use"
    )
    command.add_argument(
        "--quick", action="store_true", help="tiny arrays: shows that everything runs, measures nothing"
    )
    command.add_argument(
        "--output", type=Path, help="default: benchmarks/results/[kind-]<backend>-<date>...json"
    )


def _run(arguments: argparse.Namespace) -> int:
    options = run.Options(
        *_settings(arguments), first_calls=not arguments.no_first_calls, compile_s=arguments.compile_s
    )
    return _measure(arguments, (), partial(run.run, options), document)


def _drawn(arguments: argparse.Namespace) -> int:
    options = drawn.DrawnOptions(
        *_settings(arguments),
        compile_s=arguments.compile_s,
        number=arguments.number,
        seed=arguments.seed,
    )
    return _measure(arguments, ("drawn",), partial(drawn.run, options), shapes.document)


def _first_calls(arguments: argparse.Namespace) -> int:
    arguments.peers = False
    options = run.Options(*_settings(arguments))
    return _measure(arguments, ("first-calls",), partial(first_calls.run, options), first_calls_document)


def _settings(arguments: argparse.Namespace) -> tuple[str, int, tuple[str, ...], bool, bool]:
    """Backend, threads, operators, peers, quick."""
    peers = arguments.peers and find_spec("torch") is not None
    if arguments.peers and not peers:
        _say("no peers: PyTorch is not installed (extra: bench)")
    return (
        arguments.backend,
        arguments.threads,
        tuple(arguments.operator or ()),
        peers,
        arguments.quick,
    )


def _measure(
    arguments: argparse.Namespace,
    first: Sequence[str],
    measure: Callable[..., dict[str, Any]],
    show: Callable[[dict[str, Any], Render], str],
) -> int:
    """Measure or go on measuring, print, and say which peers were wrong."""
    output = _output(arguments, *first)
    earlier = json.loads(output.read_text()) if output.exists() else None
    result = measure(_say, partial(_save, output), earlier)
    print(show(result, plain))
    _say(f"written: {output}")
    wrong = [text for row in result["rows"] for text in row.get("peer_problems", ()) if "Mismatch" in text]
    for text in wrong:
        _say(f"a peer does not agree with ours: {text}")
    return 1 if wrong else 0


def _growth(arguments: argparse.Namespace) -> int:
    options = growth.Options(
        arguments.backend, arguments.threads, tuple(arguments.operator or ()), arguments.quick
    )
    output = _output(arguments, "growth")
    result = growth.run(options, _say, partial(_save, output))
    print(plain(*growth_table(result)))
    _say(f"written: {output}")
    return 0


def _kernels(arguments: argparse.Namespace) -> int:
    reason = ptx.problem()
    if reason is not None:
        _say(f"kernels cannot be counted: {reason}")
        return 1
    made = []
    for case in kernels.chosen(arguments.only):
        made.append(kernels.table_of(case))
        print(kernels_table.of_case(made[-1], plain), flush=True)
        if arguments.lines:
            print(kernels_table.by_line(case), flush=True)
    if arguments.only:
        return 0  # a look at some, while kernels change
    kernels.save(kernels.document(made))
    _say(f"written: {kernels.FILE}")
    return _report(arguments)


def _output(arguments: argparse.Namespace, *first: str) -> Path:
    quick = ("quick",) if arguments.quick else ()
    marks = [*first, arguments.backend, today(), *(arguments.operator or ()), *quick]
    return arguments.output or pages.RESULTS / f"{'-'.join(marks)}.json"


def _save(output: Path, result: dict[str, Any]) -> None:
    """Never half a file: whoever interrupts a run finds what it had."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial_file = output.with_suffix(".tmp")
    partial_file.write_text(json.dumps(result, indent=1) + "\n")
    partial_file.replace(output)


def _report(_: argparse.Namespace) -> int:
    changed = pages.write()
    _say(f"updated: {', '.join(path.name for path in changed) or 'nothing'}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
