"""The last moments of a listening socket, on the system's own sockets."""

import socket
import sys

import pytest

from natsweb.front.closing import accept_all, drop_new


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told")
def test_new_connections_wait_while_the_last_are_taken():
    """Those that are there are accepted and go on, one that comes is not there yet; afterwards it is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = listener.getsockname()
        with socket.create_connection(address) as early:
            drop_new(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            [accepted] = accept_all(listener)
            listener.close()
            with accepted:
                early.sendall(b"late")
                accepted.settimeout(10)
                assert accepted.recv(9) == b"late"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
