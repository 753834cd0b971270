"""Virtual machines for tests: real Linux kernels that are there after seconds, without any privilege.

User Mode Linux: a kernel that is one process; its root directory is the host's, read-only, so that every
program of the host runs in it. QEMU: Debian's kernel in QEMU's emulator, with nothing but busybox. Both run
the scripts that they are given over a serial line; see vm_init.sh.
"""

from __future__ import annotations

import base64
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence

HERE = pathlib.Path(__file__).parent
CACHE = pathlib.Path(os.environ.get("TUNSTACK_LAB", "~/.cache/tunstack-lab")).expanduser()
BOOT_PATIENCE = 120.0
"""Seconds; an emulated machine takes 5, more on a busy host."""
RUN_PATIENCE = 90.0
MODULES = ("virtio_pci", "virtio_net")
KERNEL = "linux-image-cloud-amd64"


class VmError(Exception):
    """A machine could not be made, or did not do what it was told."""


class Vm:
    """A machine that runs until it is closed."""

    def __init__(
        self, command: Sequence[str], line: socket.socket, *, fds: Iterable[int] = (), folder: str
    ) -> None:
        self._line = line
        self._unread = b""
        self._folder = folder
        self._log = pathlib.Path(folder, "console")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(fds),
                start_new_session=True,
            )
        try:
            while self._read_line(BOOT_PATIENCE) != "READY":
                pass
        except BaseException:
            self.close()
            raise

    def run(self, script: str, *, check: bool = True, patience: float = RUN_PATIENCE) -> str:
        """What `script` prints; `VmError` if its status is not 0, unless `check` is False."""
        self._line.sendall(base64.b64encode(script.encode()) + b"\n")
        lines = []
        deadline = time.monotonic() + patience
        while not (line := self._read_line(deadline - time.monotonic())).startswith("END "):
            lines.append(line)
        output = base64.b64decode("".join(lines)).decode(errors="replace")
        if check and line != "END 0":
            raise VmError(f"{line}: {script}\n{output}")
        return output

    def freeze(self, frozen: bool = True) -> None:
        """Stop it as it is, or let it go on."""
        os.killpg(self._process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def close(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._line.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read_line(self, patience: float) -> str:
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            ready = select.select([self._line], [], [], max(0.0, deadline - time.monotonic()))[0]
            data = self._line.recv(1 << 16) if ready else b""
            if not data:
                console = self._log.read_text(errors="replace")[-2000:]
                raise VmError(f"the machine says nothing more; its console:\n{console}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip()


UML_VSOCK = "vsock", "vmw_vsock_virtio_transport_common"
"""Modules of User Mode Linux that AF_VSOCK needs, in order, before those of a transport."""


def start_uml(
    sock: socket.socket | None, mac: str = "", *, card: str | None = None, vsock: str | None = None
) -> Vm:
    """A User Mode Linux machine whose card sends messages to `sock`, or is what `card` says, if it has one.

    `vsock`: the socket of a vhost-user back end, see vsock_device.py.
    """
    folder = tempfile.mkdtemp(prefix="vm-")
    ours, theirs = socket.socketpair()
    fds = [theirs.fileno()]
    if sock is not None:
        fds.append(sock.fileno())
        card = f"transport=fd,fd={sock.fileno()}"
    command = [
        *("linux.uml", "mem=192M", "quiet", "panic=1", "con=null", "con0=null,fd:1", "console=tty0"),
        *(f"uml_dir={folder}/", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
        *(f"init={HERE / 'vm_init.sh'}", "ssl=null", f"ssl0=fd:{theirs.fileno()},fd:{theirs.fileno()}"),
    ]
    if card is not None:
        command.append(f"vec0:{card},depth=128,mac={mac}")
    if vsock is not None:
        command.append(f"virtio_uml.device={vsock}:19")
    with theirs:
        return Vm(command, ours, fds=fds, folder=folder)


def load_modules(machine: Vm, *names: str) -> None:
    """Load modules of a User Mode Linux machine, in this order."""
    for name in names:
        found = next(pathlib.Path("/usr/lib/uml/modules").rglob(f"{name}.ko"))
        machine.run(f"busybox insmod {found}")


def start_qemu(netdev: str, mac: str, *, fds: Iterable[int] = ()) -> Vm:
    """A machine in QEMU whose card is at the other end of `netdev`, without its id."""
    folder = tempfile.mkdtemp(prefix="vm-")
    ours, theirs = socket.socketpair()
    kernel, initramfs = qemu_image()
    kind, _, rest = netdev.partition(",")
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64,+rdrand", "-m", "192", "-display", "none"),
        *("-nodefaults", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", "quiet panic=1 mitigations=off nokaslr console=ttyS1"),
        *("-chardev", f"socket,id=line,fd={theirs.fileno()}", "-serial", "chardev:line", "-serial", "stdio"),
        *("-netdev", f"{kind},id=net0,{rest}", "-device", f"virtio-net-pci,netdev=net0,mac={mac}"),
    ]
    with theirs:
        return Vm(command, ours, fds=(theirs.fileno(), *fds), folder=folder)


def qemu_image() -> tuple[pathlib.Path, pathlib.Path]:
    """Kernel and initramfs for QEMU; made once, which takes a download of 27 MB."""
    kernel, initramfs = CACHE / "kernel", CACHE / "initramfs"
    tree = CACHE / KERNEL
    if not tree.exists():
        depends = ["apt-cache", "depends", KERNEL]
        told = subprocess.run(depends, capture_output=True, text=True, check=True).stdout
        package = re.search(r"Depends: (linux-image-\S+)", told)
        if package is None:
            raise VmError(f"apt does not know {KERNEL}")
        fetch(package[1], tree)
    if not kernel.exists():
        shutil.copy(next((tree / "boot").glob("vmlinuz-*")), kernel)
    scripts = [HERE / "vm_init.sh", HERE / "vm_lease.sh"]
    if not initramfs.exists() or any(one.stat().st_mtime > initramfs.stat().st_mtime for one in scripts):
        partial = initramfs.with_suffix(f".{os.getpid()}")
        partial.write_bytes(_initramfs(next((tree / "lib/modules").iterdir())))
        partial.rename(initramfs)
    return kernel, initramfs


def fetch(package: str, tree: pathlib.Path) -> None:
    """Unpack a package of Debian's to `tree`, unless that is there; nothing is installed."""
    if tree.exists():
        return
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        options = ["-qq", "-o", "APT::Sandbox::User=root", "download", package]
        subprocess.run(["apt-get", *options], cwd=folder, check=True)
        deb = next(pathlib.Path(folder).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), f"{folder}/tree"], check=True)
        if not tree.exists():
            os.rename(f"{folder}/tree", tree)


def _initramfs(modules: pathlib.Path) -> bytes:
    """An archive of cpio's "newc" kind: busybox, the drivers of the card, and the scripts."""
    parts: list[bytes] = []

    def add(name: str, mode: int, data: bytes = b"") -> None:
        raw = name.encode() + b"\0"
        fields = (len(parts) + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        parts.append(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    def add_file(name: str, path: pathlib.Path) -> None:
        add(name, stat.S_IFREG | 0o755, path.read_bytes())

    for name in ("bin", "dev", "etc", "etc/udhcpc", "proc", "sys", "run", "tmp", "root", "modules"):
        add(name, stat.S_IFDIR | 0o755)
    busybox = pathlib.Path("/bin/busybox")
    add_file("bin/busybox", busybox)
    for applet in subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if applet != "busybox":
            add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    add_file("init", HERE / "vm_init.sh")
    add_file("etc/udhcpc/default.script", HERE / "vm_lease.sh")
    order = _in_order(modules, MODULES)
    for path in order:
        add_file(f"modules/{path.name}", path)
    add("modules/order", stat.S_IFREG | 0o644, " ".join(path.name for path in order).encode())
    add("TRAILER!!!", 0)
    return b"".join(parts)


def _in_order(modules: pathlib.Path, names: Iterable[str]) -> list[pathlib.Path]:
    """The files of modules, each behind those that it depends on, as the modules themselves say."""
    files = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    order: dict[pathlib.Path, None] = {}

    def take(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return  # it is built in
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for other in depends[1].decode().split(",") if depends and depends[1] else ():
            take(other)
        order[path] = None

    for name in names:
        take(name)
    return list(order)
