"""Compare runs: `python -m pipelines.compare RUN RUN ... [--out DIR]`."""

import sys

from pipelines.command_line import run_command

if __name__ == "__main__":
    run_command("compare", sys.argv[1:], "python -m pipelines.compare")
