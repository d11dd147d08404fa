"""Several processes for one search, by KerasTuner's own environment variables."""

from __future__ import annotations

import os
import socket

from tfrobust.errors import UserError, require

ID, IP, PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
LOOPBACK = "127.0.0.1"


def role() -> str:
    """What this process is in a search: "alone", the "chief" or a "worker".

    The chief hands out trials and runs none. Its address is loopback unless IP names another.
    Raises UserError where only some of the variables are set.
    """
    if not any(os.environ.get(name) for name in (ID, IP, PORT)):
        return "alone"
    port = os.environ.get(PORT, "")
    require(port.isdecimal() and 0 < int(port) < 2**16, PORT, "a port, the chief's", port or None)
    require(os.environ.get(ID), ID, "chief, or a name for each worker", None)
    os.environ[IP] = os.environ.get(IP) or LOOPBACK
    return "chief" if "chief" in os.environ[ID] else "worker"


def address() -> str:
    """Of the chief."""
    return f"{os.environ[IP]}:{os.environ[PORT]}"


def check_free() -> None:
    """Raises UserError where the chief's port is taken: gRPC would share it between two chiefs."""
    try:
        for family, *_, place in socket.getaddrinfo(os.environ[IP], int(os.environ[PORT])):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
    except OSError as error:
        raise UserError(
            f"{IP}, {PORT}: expected an address of this machine and a free port, "
            f"received {address()}: {error.strerror}"
        ) from None
