"""DHCP clients as they are in use, behind a framed link: they get, renew, release and get again."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.gateway import GUEST, Running

pytestmark = pytest.mark.netns

MAC, OTHER = "5a:94:ef:00:00:64", "5a:94:ef:00:00:65"

PRIVATE = """
set -e
cp -a /etc "$1/etc"
mount --bind "$1/etc" /etc
rm -f /etc/resolv.conf /etc/dhcpcd.duid
for directory in /run /var/lib/dhcp /var/lib/dhcpcd; do
  [ ! -d $directory ] || mount -t tmpfs tmpfs $directory
done
shift
exec "$@"
"""
"""A client writes files that are the machine's: here it has its own."""

TELL = """
echo "BEGIN $1"
ip -4 -o address show dev tap0
ip -4 route show dev tap0
cat /etc/resolv.conf
ip link show dev tap0 | grep -o "mtu [0-9]*"
ping -c 1 -W 5 192.168.127.1 | grep -c '1 received' || true
echo "END $1"
"""

SCRIPTS = {
    "udhcpc": """
        udhcpc -i tap0 -n -f -t 5 -T 1 & client=$!
        until ip -4 -o address show dev tap0 | grep -q inet; do sleep 0.1; done
        sleep 0.5; tell first
        kill -USR1 $client; sleep 1.5; tell renewed
        kill -USR2 $client; sleep 1.5; tell released
        kill -USR1 $client; sleep 1.5; tell again
        kill $client; wait $client || true
    """,
    "dhclient": """
        dhclient -4 -1 tap0; tell first
        dhclient -4 -x tap0; dhclient -4 -1 tap0; tell renewed
        dhclient -4 -r tap0; sleep 0.3; tell released
        dhclient -4 -1 tap0; tell again
        dhclient -4 -x tap0
    """,
    "dhcpcd": """
        dhcpcd -4 -w -t 20 -A tap0; tell first
        dhcpcd -4 -n tap0; sleep 2; tell renewed
        dhcpcd -4 -k tap0; sleep 1; tell released
        dhcpcd -4 -w -t 20 -A tap0; tell again
        dhcpcd -4 -x tap0
    """,
}


@pytest.fixture
def leases(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "leases"


def start(path: str, *options: object) -> Running:
    running = Running("--listen", f"qemu+unix://{path}", *map(str, options))
    running.wait_for("waiting at")
    return running


@pytest.fixture
def gateway(path: str, leases: pathlib.Path) -> Iterator[Running]:
    running = start(path, "--leases", leases)
    yield running
    running.kill()


def guest(path: str, tmp_path: pathlib.Path, script: str, mac: str = MAC) -> dict[str, str]:
    """What a guest without an address tells while it runs `script`, by the name of each telling."""
    etc = tmp_path / f"etc-{len(list(tmp_path.iterdir()))}"
    etc.mkdir()
    inner = f"set -e\ntell() {{ {TELL}\n}}\n{script}"
    apart = ["unshare", "-nmp", "--fork", "--kill-child", "--mount-proc", "sh", "-c", PRIVATE, "sh", str(etc)]
    words = [sys.executable, "-I", str(GUEST), "--mac", mac, path, "1500", "sh", "-c", inner]
    done = subprocess.run([*apart, *words], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^BEGIN (\w+)\n(.*?)^END \1$", done.stdout, re.M | re.S))


def has_network(told: str, address: str) -> bool:
    """Whether a telling is that of a guest with all that DHCP gives."""
    return (
        f"inet {address}/24 brd 192.168.127.255" in told
        and re.search(r"^default via 192\.168\.127\.1\b", told, re.M) is not None
        and "nameserver 192.168.127.1\n" in told
        and told.endswith("\nmtu 1500\n1\n")
    )


def holders(leases: pathlib.Path) -> dict[str, str]:
    """Who has which address, by the file."""
    return {one["address"]: one["mac"] for one in json.loads(leases.read_text())["leases"]}


@pytest.mark.parametrize(
    "client", [pytest.param(name, marks=[pytest.mark.slow] * (name != "udhcpc")) for name in SCRIPTS]
)
def test_a_client_gets_renews_releases_and_gets_again(
    gateway: Running, path: str, leases: pathlib.Path, tmp_path: pathlib.Path, client: str
) -> None:
    told = guest(path, tmp_path, SCRIPTS[client])
    assert list(told) == ["first", "renewed", "released", "again"]
    for name in ("first", "renewed", "again"):
        assert has_network(told[name], "192.168.127.2"), (name, told[name])
    assert "inet " not in told["released"]
    gateway.end()
    assert holders(leases) == {"192.168.127.2": MAC}


UDHCPC = "udhcpc -i tap0 -n -q -t 5 -T 1\ntell first"


def test_leases_survive_the_gateway(path: str, leases: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for mac, address in ((MAC, "192.168.127.2"), (OTHER, "192.168.127.3"), (MAC, "192.168.127.2")):
        running = start(path, "--leases", leases)
        try:
            assert has_network(guest(path, tmp_path, UDHCPC, mac)["first"], address)
            running.end()
        finally:
            running.kill()
    assert holders(leases) == {"192.168.127.2": MAC, "192.168.127.3": OTHER}


def test_a_static_lease_is_for_its_machine_alone(path: str, tmp_path: pathlib.Path) -> None:
    running = start(path, "--static-lease", f"{OTHER}=192.168.127.2")
    try:
        assert has_network(guest(path, tmp_path, UDHCPC, MAC)["first"], "192.168.127.3")
        assert has_network(guest(path, tmp_path, UDHCPC, OTHER)["first"], "192.168.127.2")
        running.end()
    finally:
        running.kill()


def test_a_gateway_that_is_told_so_gives_no_address(path: str, tmp_path: pathlib.Path) -> None:
    running = start(path, "--no-dhcp")
    try:
        script = "if udhcpc -i tap0 -n -q -t 2 -T 1; then exit 9; fi\necho BEGIN none; echo END none"
        assert list(guest(path, tmp_path, script)) == ["none"]
        running.end()
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--static-lease", "5a:94:ef:00:00:64"], "'5a:94:ef:00:00:64' is not MAC=IP"),
        (["--static-lease", f"{MAC}=10.9.9.9"], "10.9.9.9 is not in 192.168.127.0/24"),
        (["--static-lease", f"{MAC}=192.168.127.1"], "192.168.127.1 is not for guests"),
        (
            ["--static-lease", f"{MAC}=192.168.127.7", "--static-lease", f"{OTHER}=192.168.127.7"],
            "address is given twice",
        ),
        (["--leases", "/"], "'/' is a directory"),
        (["--leases", __file__], "is no file of leases"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(path: str, options: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "tunstack", "gateway", "--listen", f"qemu+unix://{path}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert complaint in done.stderr and "Traceback" not in done.stderr
