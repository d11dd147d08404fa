"""The processes of a search, as KerasTuner's environment variables set them up."""

from __future__ import annotations

import os
import socket

from tfrobust.errors import UserError, require

ID, IP, PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
LOOPBACK = "127.0.0.1"


def role() -> str:
    """Return the role of this process in a search: "alone", "chief" or "worker".

    The chief hands out trials and runs none itself. Its address is loopback unless the variable
    KERASTUNER_ORACLE_IP names another one.

    Raises:
        UserError: If only some of the variables are set.
    """
    if not any(os.environ.get(name) for name in (ID, IP, PORT)):
        return "alone"
    port = os.environ.get(PORT, "")
    valid = port.isdecimal() and 0 < int(port) < 2**16
    require(valid, PORT, "a port, on which the chief listens", port or None)
    require(os.environ.get(ID), ID, "chief, or a name for each worker", None)
    os.environ[IP] = os.environ.get(IP) or LOOPBACK
    return "chief" if "chief" in os.environ[ID] else "worker"


def address() -> str:
    """Return the address of the chief, as IP:PORT."""
    return f"{os.environ[IP]}:{os.environ[PORT]}"


def check_free() -> None:
    """Raise a UserError if the chief's port is taken: gRPC would share it between two chiefs."""
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
