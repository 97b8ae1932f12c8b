"""The wheel: what is in it, and that it runs in an empty venv."""

import email
import os
import re
import signal
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
EXTRAS = {
    *[
        "speed",
        "forms",
        "ws",
        "docs-ui",
        "dev",
        "prometheus",
        "otel",
        "auth",
        "limits",
        "nats-proxy",
        "nkeys",
        "httpx",
        "testing",
        "standard",
        "all",
    ]
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(HERE)]
    subprocess.run(pip, check=True, timeout=120)
    [built] = folder.glob("natsweb-*.whl")
    return built


def test_what_is_in_the_wheel(wheel: Path) -> None:
    """The package, typed, with its licence, and nothing else; the metadata names the extras and the script."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith("METADATA")]
        [scripts] = [name for name in names if name.endswith("entry_points.txt")]
        fields = email.message_from_bytes(archive.read(metadata))
        assert b"natsweb = natsweb.cli:main" in archive.read(scripts)
    assert "natsweb/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"natsweb"}
    assert set(fields.get_all("Provides-Extra", [])) == EXTRAS
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "Apache-2.0"


def test_the_wheel_runs_in_an_empty_venv(wheel: Path, tmp_path: Path) -> None:
    """`pip install "natsweb[standard]"` is all that `natsweb dev` needs."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "install", "-q", f"natsweb[standard] @ {wheel.as_uri()}"]
    subprocess.run(pip, check=True, timeout=240)
    (tmp_path / "app.py").write_text((HERE / "examples" / "orders" / "app.py").read_text())
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS", "PYTHON", "COVERAGE"))}
    dev = subprocess.Popen(
        [str(binaries / "natsweb"), "dev", "--port", "0"],
        cwd=tmp_path,
        env={**clean, "XDG_CONFIG_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert dev.stderr is not None
        said = ""
        while not (found := re.search(r"http  (http://\S+)", said)):
            line = dev.stderr.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(f"{found[1]}/orders/42", timeout=10) as answer:
            assert b'"towel"' in answer.read()
        dev.send_signal(signal.SIGINT)
        dev.communicate(timeout=20)
        assert dev.returncode == 0
    finally:
        dev.kill()
        dev.communicate()
