"""Declarative runs: YAML to objects, stages, `python -m pipelines.run NAME`."""

import os
import re
import sys
import tempfile

from pipelines.xla_cache import keep_programs

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# Of oneDNN, and of a machine that has no GPU or hides it.
GREETING = re.compile(
    rb"WARNING: All log messages before|I\d{4} |To enable the following"
    rb"|E\d{4} .*cuInit.*(\(303\)|CUDA_ERROR_NO_DEVICE)"
)


def _load_quietly() -> None:
    """Import the library, TensorFlow with it, and look for devices, without the lines with which
    TensorFlow greets: it writes them before it heeds any level of its log, and a mistake's one line
    would drown in them. What else it says, such as a CUDA library that does not load, is passed on,
    after the import: where that crashes, a level of 0 shows why."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            import tfrobust  # noqa: F401, first: before TensorFlow looks for Keras's backend
            import tensorflow as tf  # isort: skip

            tf.config.list_physical_devices()
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not GREETING.match(line):
                    os.write(2, line)


keep_programs()
try:
    # Below 3 one wants to read the log; without stderr there is nowhere to. What ends a run is an
    # exception, whatever the level; what TensorFlow logs as an error beside that is none to users,
    # such as an optimizer that gives up on a graph.
    if os.environ.setdefault(LEVEL, "3") >= "2" and sys.stderr is not None:
        _load_quietly()
    else:
        import tfrobust  # noqa: F401
except ImportError as error:
    # `python -m` itself would show a traceback.
    if error.name != "tfrobust.backend" or sys.argv[:1] != ["-m"]:
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
