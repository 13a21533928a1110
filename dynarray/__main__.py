"""The command line: ``python -m dynarray`` with ``info``, ``warm-up`` or ``check-kernels``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from . import OPERATORS, use_backend, warm_up
from ._dispatch import BACKENDS
from ._info import backend_problems, collect, render


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is non-zero when it could not do it, or found a fault."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "info":
        return _info(arguments.require)
    return _warm_up(arguments) if arguments.command == "warm-up" else _check_kernels(arguments)


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
        help="cpu by default; host and ptx build every program of a family with the C++ compiler, "
        "cuda for the GPU at hand; reference needs nothing",
    )
    _add_check_kernels(commands)
    return parser


def _add_check_kernels(commands: Any) -> None:
    check = commands.add_parser(
        "check-kernels",
        help="run what NVRTC makes of the CUDA kernels, without a GPU, and report stray accesses and races",
    )
    check.add_argument("--operator", choices=OPERATORS, action="append", default=[], help="by default all")
    check.add_argument("--architecture", action="append", help="sm_75 and sm_90 by default")
    check.add_argument("--no-ftz", action="store_true", help="keep subnormal float32 numbers")
    check.add_argument("--seeds", type=int, default=2, help="calls to draw, of two sizes each")
    check.add_argument("script", nargs="?", help="a Python script to run instead of drawn calls")
    check.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


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


def _check_kernels(options: argparse.Namespace) -> int:
    problem = backend_problems()["ptx"]
    if problem is not None:
        print(f"dynarray: {problem}", file=sys.stderr)
        return 2
    from rawkernels.ptx import Target

    from . import _check_kernels as checks

    targets = [Target(name, not options.no_ftz) for name in options.architecture or ("sm_90", "sm_75")]
    if options.script:
        faults = sum(checks.check_script(options.script, options.arguments, target) for target in targets)
    else:
        faults = checks.check_operators(options.operator, targets, options.seeds)
    print(f"{faults or 'no'} fault{'s' if faults != 1 else ''}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
