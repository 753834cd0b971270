"""`tunstack packetdrill`: files and directories in, a report and an exit status out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from tests.testing.packetdrill.play import PASSIVE
from tunstack.cli.packetdrill import command

PASSES = PASSIVE + "+0 write(4, ..., 10) = 10\n+0 > P. 1:11(10) ack 1\n"
FAILS = PASSIVE + "+0 write(4, ..., 10) = 10\n+0 > P. 1:12(11) ack 1\n"
BROKEN = "0 =\n"


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    for name, text in [
        ("good", PASSES),
        ("sub/bad", FAILS),
        ("sub/worse", BROKEN),
        ("sub/note", "`x`\n" + PASSES),
    ]:
        path = tmp_path / f"{name}.pkt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "sub/readme.txt").write_text("no script")
    return tmp_path


def drill(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_script_that_passes(scripts) -> None:
    done = drill(scripts / "good.pkt")
    assert (done.exit_code, done.output) == (0, "1 passed, 0 failed\n")


def test_a_directory(scripts) -> None:
    done = drill(scripts)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0] == f"{scripts}/sub/bad.pkt:10: failed: the packet of the stack is not the one expected"
    assert lines[1:4] == [
        "    +0 > P. 1:12(11) ack 1",
        "  expected  0.200000 > P. 1:12(11) ack 1",
        "  actual    0.200000 > P. 1:11(10) ack 1 win 256",
    ]
    assert f"{scripts}/sub/worse.pkt:1:3: error: expected a packet" in done.output
    assert lines[-1] == "2 passed, 1 failed, 1 error (1 note: see --verbose)"


def test_a_script_that_cannot_be_run(scripts) -> None:
    done = drill(scripts / "sub/worse.pkt", scripts / "good.pkt")
    assert done.exit_code == 2
    assert done.output.endswith("1 passed, 0 failed, 1 error\n")
    binary = scripts / "binary.pkt"
    binary.write_bytes(b"// ok\n0 \xff")
    done = drill(binary)
    assert done.exit_code == 2
    assert done.output.startswith(f"{binary}:2:3: error: the script is not text in UTF-8\n")


def test_verbose_shows_packets_calls_and_notes(scripts) -> None:
    done = drill("-v", scripts / "sub/note.pkt")
    assert done.exit_code == 0
    assert "  0.100000 < S 0:0(0) win 32792 <mss 1000,sackOK,nop,nop,nop,wscale 7>\n" in done.output
    assert "  0.200000 > P. 1:11(10) ack 1 win 256\n" in done.output
    assert "  0.200000 write(4, ..., 10) = 10  // 10\n" in done.output
    assert "  note      the command `x` at the head is not run\n" in done.output


def test_options_and_symbols(scripts) -> None:
    script = scripts / "symbols.pkt"
    script.write_text("#ifdef SIZE\n0 > icmp echo_reply mtu SIZE\n#else\n" + PASSES + "#endif\n")
    assert drill(script).exit_code == 0
    assert drill(script, "-D", "SIZE=5").exit_code == 1
    assert drill(script, "--define", "SIZE=foo").exit_code == 2
    assert drill(script, "--ip_version=ipv6", "--mtu=1280").exit_code == 0
    assert drill(script, "--mtu=5").exit_code == 2
    wrong_window = scripts / "window.pkt"
    wrong_window.write_text(PASSES.replace("(10) ack 1\n", "(10) ack 1 win 3\n"))
    assert drill(wrong_window).exit_code == 1
    assert drill(wrong_window, "--ignore-window").exit_code == 0
    wrong_order = scripts / "order.pkt"
    wrong_order.write_text(PASSES.replace("<...>", "<wscale 7,sackOK,mss 1460>"))
    assert drill(wrong_order).exit_code == 1
    assert drill(wrong_order, "--syn-options=any").exit_code == 0
    assert drill(wrong_order, "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one script or directory (see 'tunstack packetdrill --help')"),
        (["nowhere.pkt"], "nowhere.pkt does not exist"),
        (["--foo=1", "x"], "there is no option --foo"),
        (
            ["--foo", "x"],
            "'--foo' is no option: it should be --name=value (see 'tunstack packetdrill --help')",
        ),
        (["--wire_client=1", "x"], "--wire_client is not supported: scripts do not run over a wire"),
        (["-D", "5=3", "x"], "'5' is no name for a definition"),
        (["--syn-options=foo", "x"], "Invalid value for '--syn-options'"),
    ],
)
def test_what_is_wrong_with_the_command_line(arguments, message) -> None:
    done = drill(*arguments)
    assert done.exit_code == 125
    assert done.output.startswith(f"tunstack: {message}")


def test_an_empty_directory_and_a_file_that_cannot_be_written(scripts) -> None:
    empty = scripts / "empty"
    empty.mkdir()
    assert drill(empty).output == f"tunstack: there is no *.pkt below {empty}\n"
    done = drill(scripts / "good.pkt", "--pcap", empty)
    assert done.exit_code == 125
    assert "Is a directory" in done.output


def test_a_capture_of_all_scripts(scripts) -> None:
    path = scripts / "out.pcapng"
    assert drill("--pcap", path, scripts / "good.pkt", scripts / "sub/note.pkt").exit_code == 0
    packets = rdpcap(str(path))
    assert len(packets) == 8
    assert [packet[TCP].flags.value for packet in packets[:4]] == [2, 0x12, 0x10, 0x18]
    assert packets[3][IP].src == "192.168.0.1"
    assert [round(float(packet.time), 3) for packet in packets] == [0.1, 0.1, 0.2, 0.2, 1.3, 1.3, 1.4, 1.4]


def test_the_command_as_a_process_needs_nobody_else(scripts) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tunstack", "packetdrill", str(scripts / "good.pkt")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "1 passed, 0 failed\n")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"hypothesis", "trio", "construct", "socket"}
