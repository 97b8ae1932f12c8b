"""`natsweb doctor`: what it tells, and the limits that a real nats-server contradicts."""

import json
import subprocess
import sys

import pytest

from natsweb.cli.doctor import check_limits
from natsweb.embedded import embedded_server
from natsweb.settings import Limits


def doctor(*arguments):
    """Run the command and return exit code, output and errors."""
    command = [sys.executable, "-m", "natsweb", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


FITS = {"max_payload": 1 << 20, "takes_subject": True, "files": 1 << 20}


@pytest.mark.parametrize(
    ("limits", "server", "named"),
    [
        (Limits(), {}, []),
        (Limits(), {"files": None}, []),
        (Limits(), {"max_payload": 32 * 1024}, ["header block"]),
        (Limits(header_bytes=2 << 20), {}, ["header block"]),
        (Limits(), {"takes_subject": False}, ["subject of 3072 bytes"]),
        (Limits(), {"max_payload": 128 << 20}, ["all bodies"]),
        (Limits(), {"files": 4096}, ["16384 connections"]),
        (Limits(connections=1000), {"files": 4096}, []),
    ],
)
def test_limits_that_are_contradicted(limits, server, named):
    """Each finding says what, where, and what to do."""
    findings = check_limits(limits, **{**FITS, **server})
    assert len(findings) == len(named)
    for finding, words in zip(findings, named, strict=True):
        assert words in finding.what
        assert finding.where
        assert finding.fix


def test_a_fit_house(nats_url):
    """With a server as it comes, all is well, and the facts are there."""
    code, output, errors = doctor("--nats", nats_url, "--limit", "connections=100", "--json")
    said = json.loads(output)
    assert (code, errors, said["findings"]) == (0, "", [])
    assert said["facts"]["max_payload"] == "1048576 bytes"
    assert said["facts"]["python"].startswith(f"{sys.version_info[0]}.")


async def test_a_server_with_narrow_limits(tmp_path):
    """A server with a small max_payload and short protocol lines is found out."""
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 16384\nmax_control_line: 2048\n")
    async with embedded_server(arguments=("-c", str(config))) as url:
        code, output, _ = doctor("--nats", url, "--limit", "connections=100")
    assert code == 1
    assert output.count("problem: ") == 2
    assert "max_payload 16384" in output
    assert "max_control_line" in output


def test_no_server(unused_tcp_port):
    """Without a server the facts are printed all the same, and the exit code is that of all commands."""
    code, output, errors = doctor("--nats", f"nats://127.0.0.1:{unused_tcp_port}")
    assert code == 4
    assert "python" in output
    assert "error: " in errors


def test_a_limit_that_is_none():
    """Limits are read as by the gateway."""
    code, _, errors = doctor("--limit", "size=3")
    assert code == 2
    assert "names no limit" in errors
