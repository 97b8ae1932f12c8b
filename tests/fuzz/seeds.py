"""What the fuzzer begins with: a few inputs of each kind, which the tests play as well."""

__all__ = ["SEEDS"]

_BLOCK = b"Nw-Timeout: 1000\r\nNw-Sent: 1700000000000\r\nNw-Method: POST\r\nNw-Query: a=b\r\nNw-Client: 1.2.3.4:5\r\n"
_GET = b"GET /echo/x?a=b HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\r\n"
_POST = b"POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
_CHUNKED = b"POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

SEEDS: dict[str, list[bytes]] = {
    "requests": [
        b"\x03" + _BLOCK + b"content-type: text/plain\r\n\r\n\r\nbody",
        b"\x03Nw-Accept: stream;window=524288\r\nNw-More: 1\r\nNw-Upgrade: websocket",
        b"\x02NATS/1.0\r\nx-a: \xe9\r\n\r\n",
        b"\x00",
    ],
    "replies": [
        b"\x05Nw-Status: 201\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\r\n\r\nbody",
        b"\x07Nw-Status: 503\r\nNw-Retry: 1\r\nNats-Service-Error-Code: 503",
        b"\x04NATS/1.0 503\r\nNats-Subject: a\r\n\r\n",
        b"\x05Nw-Status: 304\r\ncontent-length: 7",
        b"\x00\r\n\r\n\r\n\x08\xc8\x01\x2a\x02ok",
    ],
    "controls": [
        b"\x01Nw-Flow: 1000",
        b"\x01Nw-Flow: -",
        b"\x01Nw-End: ok;10",
        b"\x01Nw-End: close;1000;bye",
        b"\x01Nw-Status: 102\r\nNw-Timeout: 1000",
        b"\x01Nw-Status: 200\r\nNw-Stream: 1\r\nx-a: 1",
    ],
    "paths": [b"a/b", b"a.b/%2F/%41/%c3%a9", b"%2e%2e/x", b"a//b/", b"a%00*>", b"orders.7.%"],
    "heads": [
        b"Host: x\nContent-Length: 5\nConnection: close, x-a\nX-A: 1",
        b"http://x:80/a?b#c",
        b"Nw-Status: 1\nnats_x: 1\nCookie: a=b",
    ],
    "doors": [
        b"\x00" + _GET,
        b"\x01" + _POST + _GET,
        b"\x02" + _CHUNKED + _POST,
        b"\x03" + _GET + _GET + _POST,
        b"\x00GET /reply/304 HTTP/1.1\r\nHost: x\r\n\r\n" + _GET,
        b"\x00HEAD /echo/x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + _GET,
        b"\x01GET http://y/echo/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
        b"\x00GET /a/../b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"\x00GET /echo/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + _GET,
    ],
}
