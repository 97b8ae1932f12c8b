"""The last moments of a listening socket, in which no connection that its client believes in is lost.

A socket that is closed resets what the system has accepted, or is about to accept, on its behalf. Linux can be told
to drop the first packet of a connection (SYN): the client sends it again a second later, and is refused then. So
nothing new comes while the rest is taken off the queue. It is a classic BPF program of four instructions: see
linux/filter.h, and Documentation/networking/filter.rst of the kernel.
"""

import contextlib
import ctypes
import socket
import struct
import sys

__all__ = ["accept_all", "drop_new"]

_SO_ATTACH_FILTER = 26
_FLAGS, _SYN = 13, 0x02  # of a TCP header (RFC 9293 section 3.1)
_PROGRAM = b"".join(
    [
        struct.pack("HBBI", 0x30, 0, 0, _FLAGS),  # load the byte of flags
        struct.pack("HBBI", 0x45, 0, 1, _SYN),  # with SYN go on, else skip one
        struct.pack("HBBI", 0x06, 0, 0, 0),  # return: drop it
        struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF),  # return: keep all of it
    ]
)


def drop_new(listener: socket.socket) -> None:
    """Have new connections wait, on Linux; elsewhere nothing happens. Those that are there go on."""
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    with contextlib.suppress(OSError):
        said = struct.pack("HP", len(_PROGRAM) // 8, ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, said)


def accept_all(listener: socket.socket) -> list[socket.socket]:
    """Return all connections that the system has accepted on behalf of a non-blocking socket."""
    accepted = []
    with contextlib.suppress(OSError):
        while True:
            accepted.append(listener.accept()[0])
    return accepted
