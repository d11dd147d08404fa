"""Import TensorFlow for a command, without the greeting that it prints."""

from __future__ import annotations

import os
import re
import sys
import tempfile

import absl.flags
import absl.logging

from pipelines.xla_cache import keep_programs

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
QUIET = "3"
# From oneDNN, and from a machine that has no GPU or hides it.
GREETING = re.compile(
    rb"WARNING: All log messages before|I\d{4} |To enable the following"
    rb"|E\d{4} .*cuInit.*(\(303\)|CUDA_ERROR_NO_DEVICE)"
)


def start_tensorflow() -> None:
    """Import TensorFlow quietly, and have it keep compiled programs for the next start.

    If the user sets TF_CPP_MIN_LOG_LEVEL below 2, nothing is held back. The default is 3, because a
    failure raises an exception at any level, and the other errors in TensorFlow's log, such as that
    an optimizer gives up on a graph, are no failures.
    """
    keep_programs()
    absl.flags.FLAGS.mark_as_parsed()  # else absl warns at the first message that it logs
    absl.logging.use_absl_handler()
    absl.logging.set_verbosity(absl.logging.WARNING)
    if os.environ.setdefault(LEVEL, QUIET) >= "2" and sys.stderr is not None:
        import_quietly()


def import_quietly() -> None:
    """Import TensorFlow and look for devices, without its greeting on stderr.

    TensorFlow writes the greeting before it reads the level of its log. All other lines, such as
    that a CUDA library does not load, are passed on after the import. If the import itself crashes,
    the level 0 shows why.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            output.seek(0)
            for line in output:
                if not GREETING.match(line):
                    os.write(2, line)
