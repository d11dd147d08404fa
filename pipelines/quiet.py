"""Imports TensorFlow for a command, without the lines with which it greets."""

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
    """Import TensorFlow as our commands do: quietly, its compiled programs kept for the next start.

    Below level 2 of TF_CPP_MIN_LOG_LEVEL somebody wants to read TensorFlow's log, and nothing is
    held back. The default is 3: a run that ends does so by an exception at any level, and what
    TensorFlow logs as an error beside that, such as an optimizer that gives up on a graph, is none
    to a user.
    """
    keep_programs()
    absl.flags.FLAGS.mark_as_parsed()  # else absl warns at the first message that it logs
    absl.logging.use_absl_handler()
    absl.logging.set_verbosity(absl.logging.WARNING)
    if os.environ.setdefault(LEVEL, QUIET) >= "2" and sys.stderr is not None:
        import_quietly()


def import_quietly() -> None:
    """Import TensorFlow and look for devices, without its greeting on stderr.

    TensorFlow writes the greeting before it reads the level of its log. Other lines, such as that a
    CUDA library does not load, are passed on after the import. Where the import itself crashes, a
    level of 0 shows why.
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
