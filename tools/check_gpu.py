"""Check and measure the project on a GPU, and write a JSON file and a page of tables.

    python tools/check_gpu.py --out docs/performance --autoattack DIR

Run it from a checkout, on a card that nothing else uses. It takes the first card, unless
CUDA_VISIBLE_DEVICES names another. Each section runs in separate processes:

- versions and device;
- `digits_atlas`, all stages, started twice with one folder of compiled programs;
- every method, compiled by XLA and not compiled;
- training steps beside torch, if torch is installed (tools/bench_train.py);
- AutoAttack, with --autoattack beside the public code (tools/bench_eval.py);
- methods on two logical devices of the card;
- our layers beside Keras's layers.

Everything ends within --minutes. A section gets the time that is left, up to a limit. When its time
is over, the results so far count. Sections for which no time is left are named. OUT/check_gpu.json
and OUT/check_gpu.md are written after each section.

Without a GPU, or with --quick, networks and images are few and small: this tries the command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpu_table import STOPS, markdown

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
LEAST = 10.0  # the seconds that must be left to start a section
ALL_ROWS = ("natural", "ADV, 10 steps", "ATLAS, 1 step")
ONE_STEP = ("ADV, 1 step", "ATLAS, 1 step")
EPOCH = re.compile(r"\d+/\d+ - ")  # the line that Keras prints at the end of an epoch
STAGE = re.compile(r"== \S+: (\w+)")
# A line of TensorFlow's log, which users of a command should not see.
LOGGED = re.compile(
    r"[IWEF]\d{4} \d\d:|WARNING: All log|WARNING:tensorflow"
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWEF] "
    r"|.*(tensorflow/|external/.*xla|XLA service|cuDNN version)"
)

Measured = dict[str, Any]


class Check:
    """The state that all sections share: the options and a temporary folder."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.quick, self.autoattack = args.quick, args.autoattack
        self.folder, self.gpu = folder, False

    def small(self) -> list[str]:
        """Return the option that makes a tool small, if everything is to be small."""
        return ["--quick"] if self.quick else []

    def tool(self, name: str, *options: str, seconds: float) -> Measured:
        """Return what a tool writes to its --json within a number of seconds."""
        return self.tools([(name, *options)], seconds)[0]

    def tools(self, commands: Sequence[Sequence[str]], seconds: float) -> list[Measured]:
        """Run several tools at the same time, and return what each writes to its --json."""
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(Process(self.folder, [str(TOOLS / name), *options]))
                for name, *options in commands
            ]
            end = time.monotonic() + seconds
            return [process.findings(max(0.0, end - time.monotonic())) for process in processes]


class Process:
    """A Python process, which is killed with all its children at the end of the context."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.scratch = Path(tempfile.mkdtemp(dir=folder))
        self.json = self.scratch / "measured.json"
        is_tool = command[0].endswith(".py")
        self.command = [sys.executable, *command, *(["--json", str(self.json)] if is_tool else [])]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            # Several processes share the card, and torch is one of them.
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            **(environment or {}),
        }

    def __enter__(self) -> Process:
        self.errors = self.scratch / "stderr"
        with self.errors.open("w") as errors:
            self.begun = time.monotonic()
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self.lines: list[tuple[float, str]] = []  # seconds after the start, and the line
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()
        return self

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append((time.monotonic() - self.begun, line.rstrip()))

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(5)

    def ended(self, seconds: float) -> bool:
        """Return whether the process ends within a number of seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.reader.join(5)
        return True

    def findings(self, seconds: float) -> Measured:
        """Return the results that the process writes within a number of seconds.

        If they are not complete, "failed" or "ended" says why.
        """
        ended = self.ended(seconds)
        measured = json.loads(self.json.read_text()) if self.json.exists() else {}
        if not ended:
            measured["ended"] = f"after {time.monotonic() - self.begun:.0f} s, unfinished"
        elif self.process.returncode:
            errors = self.errors.read_text(errors="replace").splitlines()
            last = next((line for line in reversed(errors) if line.strip()), "no message")
            measured["failed"] = f"exit code {self.process.returncode}: {last[:300]}"
        return measured


class Section(NamedTuple):
    """A section of the check.

    Attributes:
        title: The title on the page.
        seconds: The limit of its time.
        measure: The function that returns its results within a number of seconds.
    """

    title: str
    seconds: float
    measure: Callable[[Check, float], Measured]


# ---------------------------------------------------------------------------------- the sections
def device(check: Check, seconds: float) -> Measured:
    measured = check.tool("gpu_parts.py", "device", seconds=seconds)
    check.gpu = bool(measured.get("gpu"))
    check.quick = check.quick or not check.gpu
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    if check.gpu and shutil.which(command[0]):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        measured["driver, memory"] = answer.stdout.splitlines()[0] if answer.stdout else "unknown"
    return measured


def pipeline(check: Check, seconds: float) -> Measured:
    """Start `digits_atlas` twice, with one folder of compiled programs."""
    end, cache, measured = time.monotonic() + seconds, check.folder / "cache", {}
    for number, name in enumerate(("first start", "second start")):
        command = ["-m", "pipelines.run", "digits_atlas", "--workdir", str(check.folder / name[:5])]
        command += ["--smoke"] if check.quick else []
        # As for a user, the log has its usual level, and there are no flags for XLA.
        with (
            without("TF_CPP_MIN_LOG_LEVEL", "TF_XLA_FLAGS"),
            Process(check.folder, command, {"XDG_CACHE_HOME": str(cache)}) as process,
        ):
            # The first start gets half of the time.
            ended = process.ended((end - time.monotonic()) / (2 - number))
            measured[name] = started(process, ended)
    programs = [file for file in (cache / "tfrobust" / "xla").glob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in programs)
    return measured | {"programs kept": len(programs), "bytes kept": size}


def started(process: Process, ended: bool) -> Measured:
    """Return the results of one start of the pipeline."""
    errors = process.errors.read_text(errors="replace").splitlines()
    stages = [match[1] for _, line in process.lines if (match := STAGE.match(line))]
    done = any(line.startswith("Done: ") for _, line in process.lines)
    measured: Measured = {
        "exit_code": process.process.returncode if ended else None,
        "seconds": time.monotonic() - process.begun,
        "first_epoch_seconds": next((s for s, line in process.lines if EPOCH.match(line)), None),
        "stages": stages if done else stages[:-1],
        "tensorflow_said": [line[:300] for line in errors if LOGGED.match(line)][:20],
    }
    if not ended:
        measured["ended"] = f"after {measured['seconds']:.0f} s, unfinished"
    elif process.process.returncode:
        measured["failed"] = errors[-1][:300] if errors else "no message"
    return measured


@contextlib.contextmanager
def without(*names: str) -> Any:
    """Remove variables from the environment within the context."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def methods(check: Check, seconds: float) -> Measured:
    """Compare every method compiled and not compiled.

    Several processes share the methods, as most of the time goes into compiling on one core.
    """
    shares = max(1, min(4, (os.cpu_count() or 1) // 4))
    command = ["gpu_parts.py", "methods", *check.small(), "--shares", str(shares)]
    measured: Measured = {}
    for part in check.tools([[*command, "--share", str(k)] for k in range(shares)], seconds):
        for name in ("ended", "failed"):
            if name in part and name in measured:
                part[name] = f"{measured[name]}; {part[name]}"
        measured |= part
    return measured


def steps(network: str, rows: Sequence[str], *options: str) -> Callable[[Check, float], Measured]:
    """Return a function that measures rows of tools/bench_train.py."""

    def measure(check: Check, seconds: float) -> Measured:
        chosen = [row for row in rows if "10" not in row] if check.quick else rows
        command = ["--network", "wrn_10_1" if check.quick else network, "--rows", *chosen]
        command += ["--precision", "mixed_bfloat16", "--rounds", "1" if check.quick else "3"]
        command += ["--device", "gpu" if check.gpu else "cpu", *options]
        return check.tool("bench_train.py", *command, seconds=seconds)

    return measure


def autoattack(check: Check, seconds: float) -> Measured:
    """Attack a briefly trained ResNet-18 on 1,000 test images of CIFAR-10, or images like them."""
    end = time.monotonic() + seconds
    with Process(check.folder, [str(TOOLS / "gpu_parts.py"), "fitted", *check.small()]) as process:
        trained = process.findings(seconds)
        if "ended" in trained or "failed" in trained:
            return {"training": trained} | {k: trained[k] for k in trained if k in STOPS}
        file = process.json.with_suffix(".keras")
    options = ["--data", trained["data"], "--eps", str(8 / 255)]
    options += ["--device", "gpu" if check.gpu else "cpu"]
    options += ["--examples", "16", "--attacks", "1"] if check.quick else []
    options += ["--autoattack", str(check.autoattack.resolve())] if check.autoattack else []
    left = end - time.monotonic()
    measured = check.tool("bench_eval.py", str(file), *options, seconds=left)
    return {"training": trained} | measured


def replicas(check: Check, seconds: float) -> Measured:
    return check.tool("gpu_parts.py", "replicas", *check.small(), seconds=seconds)


# In the order of their value, as no time may be left for the last.
SECTIONS = {
    "device": Section("Versions and device", 60, device),
    "pipeline": Section("`digits_atlas`, all stages, started twice", 150, pipeline),
    "methods": Section("Three steps of every method, compiled against not", 120, methods),
    "wrn_16_2": Section("Steps of WRN-16-2, batch 64", 100, steps("wrn_16_2", ONE_STEP)),
    "wrn_28_10": Section("Steps of WRN-28-10, batch 128", 150, steps("wrn_28_10", ALL_ROWS)),
    "autoattack": Section("AutoAttack on a ResNet-18", 240, autoattack),
    "replicas": Section("Two logical devices of the card against one", 80, replicas),
    "layers": Section(
        "Our layers beside Keras's own, WRN-16-2",
        80,
        steps("wrn_16_2", ONE_STEP, "--ours-only", "--plain"),
    ),
}


# ------------------------------------------------------------------------------------ the command
def run(
    sections: Mapping[str, Section],
    check: Check,
    seconds: float,
    write: Callable[[Mapping[str, Measured]], None],
) -> dict[str, Measured]:
    """Run the sections and return the results of each, or the error if a section fails.

    Args:
        sections: The sections by name.
        check: The state that they share.
        seconds: The limit for all sections together.
        write: Called with all results so far after each section.
    """
    end, results = time.monotonic() + seconds, {}
    for name, section in sections.items():
        begun = time.monotonic()
        left = min(section.seconds, end - begun)
        measured: Measured
        if left < LEAST:
            measured = {"skipped": f"no time was left of {seconds / 60:g} minutes"}
        else:
            try:
                measured = section.measure(check, left)
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                measured = {"failed": f"{type(error).__name__}: {text}"}
        results[name] = {"title": section.title} | measured | {"took": time.monotonic() - begun}
        write(results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance")
    parser.add_argument("--minutes", type=float, default=8.0, help="the limit for all sections")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--autoattack", type=Path, help="a checkout of the public AutoAttack")
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks and few images, to try the command"
    )
    args = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # our code uses every card that it sees
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: SECTIONS[name] for name in SECTIONS if name in {"device", *args.sections}}
    with tempfile.TemporaryDirectory() as folder:
        check = Check(args, Path(folder))

        def write(results: Mapping[str, Measured]) -> None:
            about = {"minutes": args.minutes, "quick": check.quick, "sections": results}
            (args.out / "check_gpu.json").write_text(json.dumps(about, indent=2) + "\n")
            (args.out / "check_gpu.md").write_text(markdown(about))
            last = list(results)[-1]
            stop = "; ".join(f"{k}: {results[last][k]}" for k in STOPS if k in results[last])
            print(f"{last}: {results[last]['took']:.0f} s {stop}", flush=True)

        run(chosen, check, 60 * args.minutes, write)
    print((args.out / "check_gpu.md").read_text())


if __name__ == "__main__":
    main()
