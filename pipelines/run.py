"""Run a config: `python -m pipelines.run NAME|PATH [--set key=value] [--workdir DIR] ...`."""

import sys

from pipelines.command_line import run_command

if __name__ == "__main__":
    run_command("run", sys.argv[1:], "python -m pipelines.run")
