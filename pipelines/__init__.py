"""Declarative runs: YAML to objects, stages, `python -m pipelines.run NAME`."""

import os
import re
import sys
import tempfile

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# TensorFlow on oneDNN and on a machine without a GPU, and the line above them.
GREETING = re.compile(
    rb"WARNING: All log messages before|I\d{4} |To enable|E\d{4} .*cuInit.*\(303\)"
)


def _load_tensorflow() -> None:
    """Import TensorFlow and look for devices, without the lines with which it greets: it writes
    them before it heeds any level of its log, and a mistake's one line would drown in them. What
    else it says, such as a CUDA library that it misses, is passed on."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not GREETING.match(line):
                    os.write(2, line)


if os.environ.setdefault(LEVEL, "2") >= "2":  # below that one wants to read the log
    _load_tensorflow()
