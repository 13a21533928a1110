"""The command line: ``python -m dynarray info`` and ``python -m dynarray warm-up``."""

import argparse
import logging
import sys
from collections.abc import Sequence

from . import OPERATORS, use_backend, warm_up
from ._dispatch import BACKENDS
from ._info import backend_problems, collect, render


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is non-zero when it could not do what it was asked for."""
    arguments = _parser().parse_args(argv)
    return _info(arguments.require) if arguments.command == "info" else _warm_up(arguments)


def _parser() -> argparse.ArgumentParser:
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
    warm = commands.add_parser(
        "warm-up",
        help="compile kernels ahead of their first call, into the cache on disk",
        description="Compile kernels ahead of their first call and keep them on disk, so that processes that "
        "start later load them: in the build of a container, say, under the user and with the variables of "
        "the environment that the service will have. Fails when nothing could be kept.",
    )
    names = ", ".join(OPERATORS)
    warm.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"by default all: {names}")
    warm.add_argument(
        "--dtype", action="append", metavar="DTYPE", help="may be given several times; float32 by default"
    )
    warm.add_argument("--no-backward", action="store_true", help="leave out the kernels of backward passes")
    warm.add_argument(
        "--backend",
        choices=BACKENDS,
        default="cpu",
        help="cpu by default; host builds every program of a family with the C++ compiler, "
        "cuda for the GPU at hand; reference needs nothing",
    )
    return parser


def _info(required: Sequence[str]) -> int:
    print(render(collect()))
    problems = backend_problems()
    missing = [name for name in required if problems[name] is not None]
    for name in missing:
        print(f"dynarray: backend {name!r} is required and not available: {problems[name]}", file=sys.stderr)
    return 1 if missing else 0


def _warm_up(arguments: argparse.Namespace) -> int:
    log, handler = logging.getLogger("dynarray"), logging.StreamHandler(sys.stdout)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with use_backend(arguments.backend):
            done = warm_up(
                arguments.operators or None, arguments.dtype or ("float32",), not arguments.no_backward
            )
    except (ValueError, RuntimeError) as error:
        print(f"dynarray: {error}", file=sys.stderr)
        return 1
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
    what = f"{len(done.operators)} operators for {', '.join(done.dtypes)} on backend {done.backend!r}"
    by = f"by {done.processes} process{'es' if done.processes > 1 else ''}"
    print(f"{what}: {len(done.compiled)} compilations in {done.seconds:.1f} s {by}")
    lost = sum(not each.kept for each in done.compiled)
    if lost:
        print(f"dynarray: {lost} of them could not be kept on disk", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
