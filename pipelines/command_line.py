"""The command `tfrobust`, and its parts `python -m pipelines.run` and `pipelines.compare`.

TensorFlow is imported only after the arguments and the keys of the config have been checked, so
that a typing mistake is answered at once. A comparison does not import it.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from pipelines.stopping import GO_ON, stop_at_signals

ABOUT = {
    "run": "Run a config or a suite: its name, or the path of a .yaml file.",
    "evaluate": "Evaluate a run folder, a SavedModel, or a .keras, .h5, .onnx or .tflite file.",
    "harden": "Train a network on against an adversary, with evaluations before and after.",
    "compare": "Compare the evaluations of two run folders or more.",
}
USAGE = {
    "run": "NAME|PATH",
    "evaluate": "[MODEL]",
    "harden": "MODEL --data DIR --eps EPS",
    "compare": "RUN RUN ...",
}
EXAMPLES = {
    "run": "example: {} digits_atlas --set method.alpha=1e-4",
    "evaluate": "example: {} model.keras --set data.name=mnist --set threat.eps=0.3",
    "harden": "example: {} model.keras --data photos --eps 4/255",
    "compare": "example: {} runs/digits_adv runs/digits_atlas --out compared",
}
UNREAD = 141  # the exit status of a command whose output nobody reads, as by SIGPIPE
# The protocol of RobustBench's Linf leaderboard, where a published architecture is evaluated.
ROBUSTBENCH = ("data.name=cifar10", "threat.eps=8/255")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command `tfrobust` with the arguments `argv`, by default those of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        run_command(arguments[0], arguments[1:], f"tfrobust {arguments[0]}")
        return
    _check_backend()
    parser = _Parser(
        prog="tfrobust",
        usage="tfrobust COMMAND ...",
        description="\n".join(f"  {name:<10}{about}" for name, about in ABOUT.items()),
        epilog="tfrobust COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _parse(parser, arguments)
    fail(f"COMMAND: expected one of {', '.join(ABOUT)}, received none")


def run_command(command: str, argv: Sequence[str], program: str) -> None:
    """Run one command of `tfrobust`.

    Args:
        command: "run", "evaluate", "harden" or "compare".
        argv: The arguments that follow the command.
        program: The words that precede the arguments, for the help.
    """
    open_streams()
    stop_at_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal knows the signs of a table
        sys.stdout.reconfigure(errors="replace")
    _check_backend()
    _choose("COMMAND", command, ABOUT)
    try:
        _run_command(command, argv, program)
        sys.stdout.flush()
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout at its end
        fail(f"stdout: expected a reader of the output, it has gone; {GO_ON}", UNREAD)


def _run_command(command: str, argv: Sequence[str], program: str) -> None:
    parser = _parser(command, program)
    options, names = _parse(parser, argv)
    if command == "compare":
        _compare(names, options)
    elif command == "evaluate":
        options.overrides = [*_network(names, options), *options.overrides]
        _run("evaluate", options)
    elif command == "harden":
        options.overrides = [*_hardened(names, options), *options.overrides]
        _run("harden", options)
    else:
        if len(names) != 1:
            received = ", ".join(names) or "none"
            sets = " ".join(f"--set {name}" for name in names if "=" in name)
            hint = f" (did you mean {sets}?)" if sets else ""
            fail(f"expected one config, received {received}{hint}; usage: {parser.usage}")
        _run(names[0], options)


def _network(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Return the overrides that name the network to evaluate, by an argument or by --model.

    With an architecture the data and the threat are RobustBench's, unless others are set.
    """
    names = names if options.model is None else [*names, options.model]
    if len(names) > 1:
        fail(f"MODEL: expected one network at most, received {', '.join(names)}")
    overrides = [f"model.path={name}" for name in names]
    _check_once(overrides, options.overrides)
    if options.architecture is None:
        return overrides
    return [*overrides, f"model.architecture={options.architecture}", *ROBUSTBENCH]


def _hardened(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Return the overrides that name the network to harden, its images and eps."""
    if len(names) != 1:
        fail(f"MODEL: expected one network, received {', '.join(names) or 'none'}")
    for option, meaning in (("data", "the folder or .npz file of images"), ("eps", "4/255, say")):
        if getattr(options, option) is None:
            fail(f"--{option}: expected a value ({meaning}), received none")
    kind = "npz" if options.data.lower().endswith(".npz") else "folder"
    data = [f"data.name={kind}", f"data.path={options.data}"]
    overrides = [f"train.init_from={names[0]}", *data, f"threat.eps={options.eps}"]
    _check_once(overrides, options.overrides)
    return overrides


def _check_once(named: Sequence[str], overrides: Sequence[str]) -> None:
    """Exit with one line if --set names again what an argument or another option has named."""
    given = dict(override.split("=", 1) for override in named)
    for override in overrides:
        if (key := override.partition("=")[0]) in given:
            fail(f"--set {override}: expected none beside {given[key]!r}, which is {key}, too")


def fail(line: str, status: int = 2) -> NoReturn:
    """Print an error of one line and exit."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


def fail_at(place: Path, error: OSError) -> NoReturn:
    """Print the error of a file that cannot be read or written, or else of `place`, and exit."""
    from tfrobust.errors import one_line

    if isinstance(error, BrokenPipeError):  # of stdout, which is no place
        raise error
    line = error.strerror or one_line(error)
    fail(f"{error.filename or place}: expected a place to read or write: {line}")


def open_streams() -> None:
    """Open the standard streams that are closed, as by `2>&-`, so that what is printed is lost.

    Else the next file that is opened would get the number of stderr, and hold its lines.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        fail(message.removeprefix("argument "))


class _Version(argparse.Action):
    """Prints the version, for which nothing but `tfrobust` is imported."""

    def __call__(self, *_: object) -> NoReturn:
        from tfrobust import __version__

        print(f"tfrobust {__version__}")
        sys.exit(0)


def _parser(command: str, program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        usage=f"{program} {USAGE[command]} [OPTIONS]",
        description=ABOUT[command],
        epilog=EXAMPLES[command].format(program),
        allow_abbrev=False,
    )
    if command == "compare":
        parser.add_argument(
            "--out",
            type=_folder,
            metavar="DIR",
            help="also write a page with figures and tables here",
        )
        return parser
    if command == "evaluate":
        parser.add_argument(
            "--model", metavar="MODEL", help="the network, in place of the argument"
        )
        parser.add_argument(
            "--architecture",
            metavar="NAME",
            help="MODEL holds published weights of this architecture (docs/zoo.md); the data are "
            "CIFAR-10 and the threat Linf 8/255 unless others are set",
        )
    if command == "harden":
        parser.add_argument(
            "--data", metavar="DIR", help="train/CLASS and test/CLASS with images, or an .npz file"
        )
        parser.add_argument(
            "--eps", help="the largest change of a value in [0, 1] by the adversary, such as 4/255"
        )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, such as method.alpha=1e-4; may be given several times",
    )
    parser.add_argument(
        "--workdir",
        type=_folder,
        default=Path("runs"),
        metavar="DIR",
        help="the folder in which run folders are made (default: runs)",
    )
    parser.add_argument(
        "--stages",
        type=_names,
        metavar="A,B",
        help="the stages to run now, of those that the config has (default: all)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="run every stage in seconds: few steps, a tiny network, made-up images",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved config and stop"
    )
    return parser


def _folder(text: str) -> Path:
    """Return the path of a folder; the shell leaves the "~" of --workdir=~/runs as it is."""
    from tfrobust.errors import UserError, user_path

    try:
        text.encode()
    except UnicodeEncodeError:  # TensorFlow takes no other paths
        line = f"expected a path in UTF-8, received {text!r}"
        raise argparse.ArgumentTypeError(line) from None
    try:
        return user_path("path", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the other arguments, which may stand between the options."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    options, names = parser.parse_known_args(list(argv))
    available = re.findall(r"--\w+", parser.format_help())
    for name in names:
        if name.startswith("-"):
            _choose("option", name.partition("=")[0], available)
    return options, names


def _choose(argument: str, value: str, options: Collection[str]) -> None:
    from tfrobust.errors import UserError, choose

    try:
        choose(argument, value, options)
    except UserError as error:
        fail(str(error))


def _check_backend() -> None:
    """Exit with one line if Keras has another backend than TensorFlow."""
    try:
        import tfrobust  # noqa: F401
    except ImportError as error:
        if error.name != "tfrobust.backend":
            raise
        fail(str(error))


def _run(name: str, options: argparse.Namespace) -> None:
    from pipelines.early_check import check
    from pipelines.quiet import start_tensorflow
    from tfrobust.errors import UserError

    try:
        check(name, options.overrides, options.workdir, options.stages)
    except UserError as error:
        fail(str(error))
    except OSError:
        pass  # the full check says which file cannot be read
    start_tensorflow()
    from pipelines import runner

    runner.main(name, options)


def _compare(names: Sequence[str], options: argparse.Namespace) -> None:
    from tfrobust.errors import UserError, require

    try:
        require(len(names) > 1, "runs", "two run folders or more", list(names))
        from pipelines.comparison import compare

        compare([Path(name) for name in names], options.out)
    except UserError as error:
        fail(str(error))
    except OSError as error:
        fail_at(options.out or Path(), error)
