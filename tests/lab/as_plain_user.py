"""Runs a command as a user without privileges to whom /dev/net/tun is open; started by root.

    as_plain_user.py UID [--hide-tun | --closed-tun] COMMAND...

Everything happens in a private mount namespace and leaves no trace: a TUN node of mode 0666 is bound over
the real one (or none, or one of mode 0600), and the folders of this interpreter and of tunstack, which may be
below a home directory that is closed to others, are made reachable. The user needs no account.
"""

from __future__ import annotations

import ctypes
import os
import site
import stat
import sys
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
SCRATCH = Path("/mnt")

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: object, target: object, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = (os.fsencode(str(source)), os.fsencode(str(target)), kind and kind.encode())
    if libc.mount(*arguments, ctypes.c_ulong(flags), data and data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {source} {target}")


def first_closed(path: Path) -> Path | None:
    """The outermost folder above `path` that others may not pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def open_the_way(paths: list[Path]) -> None:
    """Put a folder that others may pass over each closed one, with only `paths` below it."""
    closed: dict[Path, dict[Path, Path]] = {}
    for number, path in enumerate(paths):
        gate = first_closed(path)
        if gate is not None and path not in closed.get(gate, {}):
            keep = SCRATCH / f"keep{number}"
            keep.mkdir()
            mount(path, keep, None, MS_BIND | MS_REC)
            closed.setdefault(gate, {})[path] = keep
    for gate, kept in closed.items():
        mount("tmpfs", gate, "tmpfs", 0, "mode=0755")
        for path, keep in sorted(kept.items()):
            path.mkdir(parents=True, exist_ok=True)
            mount(keep, path, None, MS_BIND | MS_REC)


def main() -> None:
    uid = int(sys.argv[1])
    command = sys.argv[2:]
    tun = Path("/dev/net/tun")
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", None, MS_REC | MS_SLAVE)
    mount("tmpfs", SCRATCH, "tmpfs", 0, "mode=0755")
    mode = 0o600 if command[0] == "--closed-tun" else 0o666
    os.mknod(SCRATCH / "tun", stat.S_IFCHR | mode, os.makedev(10, 200))
    os.chmod(SCRATCH / "tun", mode)
    if command[0] == "--hide-tun":
        mount("tmpfs", tun.parent, "tmpfs", 0, "mode=0755")
    else:
        mount(SCRATCH / "tun", tun, None, MS_BIND)
    if command[0].startswith("--"):
        del command[0]
    import tunstack

    package = Path(str(tunstack.__file__)).parent
    folders = [Path(sys.base_prefix), Path(sys.prefix), package.parent, *map(Path, site.getsitepackages())]
    open_the_way([folder.resolve() for folder in folders if folder.exists()])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execvp(command[0], command)


main()
