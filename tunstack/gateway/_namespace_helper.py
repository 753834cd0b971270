"""The program that makes or enters namespaces; it is exec'ed, never imported by tunstack.

It runs as `python -I -S _namespace_helper.py MODE FD CONFIG [COMMAND...]`, alone and with the standard
library only, so that `unshare`, `setns` and `fork` happen in a process that has one thread and 20 ms
of start-up. FD is a seqpacket socket to the process that started it, which speaks JSON, one object a message:

    run    -> device (with the TAP by SCM_RIGHTS)   <- go   -> started not-run | stopped ... exit   <- signal
    enter  -> device (with the TAP by SCM_RIGHTS), then the helper ends
    both   -> failed, with one sentence for the user

`run` makes three processes. The helper itself stays outside the new PID namespace and waits; its child is the
init (PID 1 inside), which mounts `/proc`, reaps, and reports; the init's child becomes COMMAND. The end of
the socket, which the death of the starter brings about however it died, makes the init exit, and the kernel
then kills whatever is in its PID namespace. The parent-death signal is the second line of defence. Where the
PID namespace is shared, helper and init are subreapers and kill their descendants themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
from typing import Any, NoReturn

assert sys.platform != "win32", "this is for Linux"

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NS_GET_USERNS = 0xB701
NS_GET_NSTYPE = 0xB703

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

IFF_UP = 1
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
NLMSG_ERROR = 2
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
IFLA_ADDRESS, IFLA_MTU = 1, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1

SHIELDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""What a terminal or a user sends to a whole process group: meant for COMMAND, never for helper and init."""

NAME_SERVICE_SOCKETS = ("/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve")
"""Where the C library asks resolvers that live outside, which would go past the private resolv.conf."""

MAX_GROUP = 0x7FFFFFFF
"""The largest group that net.ipv4.ping_group_range takes."""

libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """The work cannot be done; the text is one sentence for the user."""


def check(result: int, what: str = "") -> int:
    """Raise the OSError of a libc call that returned -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)
    return result


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    source_, target_, kind_, data_ = arguments
    check(libc.mount(source_, target_, kind_, ctypes.c_ulong(flags), data_), target)


def prctl(option: int, value: int) -> None:
    check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read_first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def send(channel: socket.socket, **message: object) -> None:
    channel.send(json.dumps(message).encode())


# ---- namespaces ----


def enter_new_namespaces(config: dict[str, Any]) -> None:
    """Unshare; as somebody without the right to do so, inside a user namespace of our own."""
    flags = CLONE_NEWNET | CLONE_NEWNS | (0 if config["share_pid"] else CLONE_NEWPID)
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            check(libc.unshare(flags))
            return
        except PermissionError:
            pass  # root of a container without CAP_SYS_ADMIN is an ordinary user here
        except OSError as error:
            raise Failed(why_no_namespace(error)) from None
    try:
        check(libc.unshare(flags | CLONE_NEWUSER))
        # One id mapped to itself needs no newuidmap; the kernel wants setgroups switched off first.
        write_file("/proc/self/setgroups", "deny")
        write_file("/proc/self/gid_map", f"{0 if config['root'] else gid} {gid} 1")
        write_file("/proc/self/uid_map", f"{0 if config['root'] else uid} {uid} 1")
    except OSError as error:
        raise Failed(why_no_namespace(error)) from None


def why_no_namespace(error: OSError) -> str:
    """The sentence for a user namespace that may not be made, with what forbids it if that can be seen."""
    start = "this user may not make the namespaces that a guest needs"
    if error.errno == errno.ENOSPC or read_first_line("/proc/sys/user/max_user_namespaces") == "0":
        return (
            f"{start}: raise the sysctls user.max_user_namespaces and user.max_net_namespaces, or run as root"
        )
    if read_first_line("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return f"{start}: set the sysctl kernel.unprivileged_userns_clone to 1, or run as root"
    if read_first_line("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            f"{start}: set the sysctl kernel.apparmor_restrict_unprivileged_userns to 0, "
            "give tunstack an AppArmor profile with userns, or run as root"
        )
    return (
        f"{start} ({error.strerror}): in a container allow unshare and user namespaces "
        "(its seccomp profile forbids them), or run as root"
    )


def join_namespace(fd: int) -> None:
    """Enter the network namespace `fd` by way of the user namespace that owns it.

    The owner is asked for (NS_GET_USERNS) and not taken from the process: a sandbox may have made a second
    user namespace after the network namespace, and its root has no right over the latter.
    """
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        raise Failed(
            "the target is not a network namespace; give a process number or a path such as /run/netns/NAME"
        )
    if same_file(os.fstat(fd), os.stat("/proc/self/ns/net")):
        raise Failed("the target is in tunstack's own network namespace, so there is nothing to attach to")
    try:
        owner = fcntl.ioctl(fd, NS_GET_USERNS)
    except OSError:
        owner = -1  # it belongs to an ancestor of ours; setns below says whether we may
    try:
        if owner >= 0 and not same_file(os.fstat(owner), os.stat("/proc/self/ns/user")):
            check(libc.setns(owner, CLONE_NEWUSER))
        check(libc.setns(fd, CLONE_NEWNET))
    except OSError as error:
        raise Failed(
            f"this user may not enter the network namespace ({error.strerror}): "
            "run tunstack as the user who made it, or as root"
        ) from None
    finally:
        if owner >= 0:
            os.close(owner)


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def separate_mounts() -> None:
    try:
        mount(None, "/", None, MS_REC | MS_SLAVE)
    except OSError as error:
        raise Failed(why_no_namespace(error)) from None


def open_ping_range() -> None:
    """Let every group that exists here use ping sockets; best effort, for /proc/sys may be read-only."""
    try:
        with open("/proc/self/gid_map", encoding="ascii") as file:
            ranges = [(int(first), int(count)) for first, _, count in map(str.split, file)]
        low = min(first for first, _ in ranges)
        high = min(max(first + count - 1 for first, count in ranges), MAX_GROUP)
        write_file("/proc/sys/net/ipv4/ping_group_range", f"{low} {high}")
    except (OSError, ValueError):
        pass


# ---- files of the guest ----


def private_resolv_conf(text: str) -> None:
    """Bind a resolv.conf of the guest's own over the real one, from a tmpfs that is mounted for a moment.

    The mount namespace is ours alone, so what the tmpfs hides meanwhile is missed by nobody.
    """
    try:
        etc = os.open("/etc", os.O_PATH | os.O_DIRECTORY)
        try:
            target = os.open("/etc/resolv.conf", os.O_PATH)
        except OSError:
            target = -1  # absent, or a link that leads nowhere
        sockets = [os.open(path, os.O_PATH) for path in NAME_SERVICE_SOCKETS if os.path.exists(path)]
        scratch = next(path for path in ("/tmp", "/run", "/mnt", "/dev", "/etc") if os.path.isdir(path))
        mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=1m")
        ours = f"{scratch}/resolv.conf"
        make_file(ours, text)
        make_file(f"{scratch}/refuses", "")
        for fd in sockets:
            mount(f"{scratch}/refuses", f"/proc/self/fd/{fd}", None, MS_BIND)
        if target >= 0 and stat.S_ISREG(os.fstat(target).st_mode):
            mount(ours, f"/proc/self/fd/{target}", None, MS_BIND)
        else:
            rebuild_etc(etc, f"{scratch}/etc", text)
        check(libc.umount2(os.fsencode(scratch), MNT_DETACH), scratch)
        for fd in (etc, target, *sockets):
            if fd >= 0:
                os.close(fd)
    except OSError as error:
        raise Failed(
            f"cannot give the guest a resolv.conf of its own ({error.filename or '/etc'}: {error.strerror}); "
            "mounts must be allowed in the namespaces that this user makes"
        ) from None


def rebuild_etc(etc: int, copy: str, resolv_conf: str) -> None:
    """Put a directory with the same entries and a resolv.conf over `/etc`: there is no file to bind over."""
    os.mkdir(copy)
    os.chmod(copy, 0o755)
    make_file(f"{copy}/resolv.conf", resolv_conf)
    old = f"/proc/self/fd/{etc}"
    for name in os.listdir(old):
        source, target = f"{old}/{name}", f"{copy}/{name}"
        if name == "resolv.conf":
            continue
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            make_file(target, "")
        mount(source, target, None, MS_BIND | MS_REC)
    mount(copy, old, None, MS_BIND | MS_REC)


def make_file(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(path, 0o644)


# ---- the device ----


def make_device(layer3: bool) -> tuple[int, str]:
    """A new TAP (or TUN) in the network namespace that we are in: descriptor and name."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(why_no_tun(error)) from None
    flags = (IFF_TUN if layer3 else IFF_TAP) | IFF_NO_PI | IFF_VNET_HDR
    pattern = b"tun%d" if layer3 else b"tap%d"
    try:
        answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", pattern, flags))
    except OSError as error:
        raise Failed(f"cannot make a network device in the namespace: {error.strerror}") from None
    return fd, answer[:16].rstrip(b"\0").decode()


def why_no_tun(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return (
            "/dev/net/tun is missing: load the kernel's tun module (modprobe tun), "
            "or pass the device into this container (--device /dev/net/tun)"
        )
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "this kernel has no TUN/TAP driver: load the module (modprobe tun) or enable CONFIG_TUN"
    return (
        f"/dev/net/tun cannot be opened by this user ({error.strerror}): make it readable and writable "
        "(chmod 0666 /dev/net/tun, or a node of that mode bound over it), run tunstack as root, "
        "or let root make the device and pass its descriptor to attach_fd()"
    )


class Netlink:
    """An rtnetlink socket (RFC 3549) that asks one thing at a time and waits for its ACK."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)

    def request(self, kind: int, flags: int, body: bytes, *attributes: tuple[int, bytes]) -> None:
        for number, value in attributes:
            body += struct.pack("HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
        header = struct.pack("IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0)
        self._socket.send(header + body)
        answer = self._socket.recv(65536)
        if struct.unpack_from("H", answer, 4)[0] == NLMSG_ERROR:
            number = -struct.unpack_from("i", answer, 16)[0]
            if number:
                raise OSError(number, os.strerror(number))

    def close(self) -> None:
        self._socket.close()


def configure_network(name: str, config: dict[str, Any]) -> None:
    """Bring up lo and the device, with its MAC, MTU, addresses and default routes."""
    netlink = Netlink()
    index = socket.if_nametoindex(name)
    step = "the loopback interface"
    try:
        lo = socket.if_nametoindex("lo")
        netlink.request(RTM_NEWLINK, 0, struct.pack("BxHiII", 0, 0, lo, IFF_UP, IFF_UP))
        step = f"the MTU {config['mtu']} of {name}"
        attributes = [(IFLA_MTU, struct.pack("I", config["mtu"]))]
        if not config["layer3"]:
            attributes.append((IFLA_ADDRESS, bytes.fromhex(config["mac"])))
        netlink.request(RTM_NEWLINK, 0, struct.pack("BxHiII", 0, 0, index, IFF_UP, IFF_UP), *attributes)
        families = usable_families(name)
        for text, prefix in config["addresses"]:
            address = bytes.fromhex(text)
            if family_of(address) not in families:
                continue
            step = f"the address {socket.inet_ntop(family_of(address), address)}"
            add_address(netlink, index, address, prefix)
        for text in config["gateways"]:
            gateway = bytes.fromhex(text)
            if family_of(gateway) not in families:
                continue
            step = f"the default route by {socket.inet_ntop(family_of(gateway), gateway)}"
            body = struct.pack(
                "8BI", family_of(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0
            )
            oif = struct.pack("I", index)
            netlink.request(
                RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, (RTA_OIF, oif), (RTA_GATEWAY, gateway)
            )
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise Failed(f"cannot set {step}: the namespace has one already") from None
        raise Failed(f"cannot set {step} in the namespace: {error.strerror}") from None
    finally:
        netlink.close()


def usable_families(name: str) -> tuple[int, ...]:
    """The address families that the kernel has for an interface; containers often come with IPv6 off."""
    switch = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
    if not os.path.exists(switch):
        return (socket.AF_INET,)
    if read_first_line(switch) != "0":
        with contextlib.suppress(OSError):  # a read-only /proc/sys
            write_file(switch, "0")
    if read_first_line(switch) != "0":
        return (socket.AF_INET,)
    return (socket.AF_INET, socket.AF_INET6)


def family_of(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def add_address(netlink: Netlink, index: int, address: bytes, prefix: int) -> None:
    flags = 0
    attributes = [(IFA_LOCAL, address), (IFA_ADDRESS, address)]
    if len(address) == 4:
        broadcast = int.from_bytes(address, "big") | ((1 << (32 - prefix)) - 1)
        attributes.append((IFA_BROADCAST, broadcast.to_bytes(4, "big")))
    else:
        flags = IFA_F_NODAD  # nobody else can have it, and waiting would cost a second
    body = struct.pack("BBBBI", family_of(address), prefix, flags, 0, index)
    netlink.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, *attributes)


def hand_over(channel: socket.socket, fd: int, name: str) -> None:
    message = json.dumps({"event": "device", "name": name}).encode()
    socket.send_fds(channel, [message], [fd])
    os.close(fd)


# ---- run ----


def run(channel: socket.socket, config: dict[str, Any], command: list[bytes]) -> int:
    kept = [number for number in range(1, signal.NSIG) if signal_is_ignored(number)]
    for number in SHIELDED:
        signal.signal(number, signal.SIG_IGN)
    enter_new_namespaces(config)
    # After unshare, which clears it; the starter may have died before it took effect.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != config["parent"]:
        return 1
    separate_mounts()
    private_resolv_conf(config["resolv_conf"])
    fd, name = make_device(config["layer3"])
    configure_network(name, config)
    open_ping_range()
    hand_over(channel, fd, name)
    if not channel.recv(4096):
        return 1
    share_pid = config["share_pid"]
    if share_pid:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # should the init be killed, its children come to us
    pid = os.fork()
    if pid == 0:
        leave(lambda: init(channel, share_pid, command, kept), channel)
    channel.close()
    os.waitpid(pid, 0)
    if share_pid:
        kill_descendants()
    return 0


def signal_is_ignored(number: int) -> bool:
    # Python itself ignores SIGPIPE and SIGXFSZ, so what the caller wanted is lost: the default,
    # as with subprocess.
    if number in (signal.SIGPIPE, signal.SIGXFSZ):
        return False
    return signal.getsignal(number) == signal.SIG_IGN


def init(channel: socket.socket, share_pid: bool, command: list[bytes], kept: list[int]) -> int:
    """The parent of COMMAND: PID 1 of its namespace, or the subreaper where that is shared."""
    parent = os.getppid()
    if share_pid:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGCHLD)  # wakes `supervise`, which ends; then we clean up
    else:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        except OSError as error:
            raise Failed(
                f"cannot mount a fresh /proc for the guest ({error.strerror}): "
                "this container hides parts of /proc, so use --share-pid"
            ) from None
        open_ping_range()
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    # What we forward to the child before it has undone our shield waits there, where it would be ignored.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    child = os.fork()
    if child == 0:
        become(command, channel, kept, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with contextlib.suppress(OSError):  # the starter is gone
        supervise(channel, child, wake, parent)
    if share_pid:
        kill_descendants()
    return 0


def supervise(channel: socket.socket, child: int, wake: int, parent: int) -> None:
    """Reap, report and forward signals until COMMAND, the starter or our parent has ended."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake:
                os.read(wake, 512)
                if reap(channel, child) or os.getppid() != parent:
                    return
            else:
                message = channel.recv(4096)
                if not message:
                    return
                forward(child, json.loads(message)["signal"])


def forward(child: int, number: int) -> None:
    """Send COMMAND a signal; the one to go on to its whole group if it leads one, as a shell would."""
    with contextlib.suppress(PermissionError):  # a setuid program in a shared PID namespace
        if number == signal.SIGCONT and os.getpgid(child) == child:
            os.killpg(child, number)
        else:
            os.kill(child, number)


def reap(channel: socket.socket, child: int) -> bool:
    """Collect whoever has died; true when COMMAND has."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return False
        if pid == 0:
            return False
        if pid != child:
            continue
        if os.WIFSTOPPED(status):
            send(channel, event="stopped", signal=os.WSTOPSIG(status))
        else:
            send(channel, event="exit", status=os.waitstatus_to_exitcode(status))
            return True


def kill_descendants() -> None:
    """Kill our children until none is left; those of the dead become ours, for we are their subreaper."""
    me = os.getpid()
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit() and parent_of(name) == me:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def parent_of(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return -1


def become(
    command: list[bytes], channel: socket.socket, kept: list[int], mask: set[int | signal.Signals]
) -> NoReturn:
    """Exec COMMAND with the starter's environment and signals: `kept` ignored, `mask` blocked."""
    number = errno.ENOENT
    try:
        signal.set_wakeup_fd(-1)
        for signum in range(1, signal.NSIG):
            if signum not in (signal.SIGKILL, signal.SIGSTOP) and signum not in kept:
                with contextlib.suppress(OSError):  # one that belongs to the C library
                    signal.signal(signum, signal.SIG_DFL)
        for signum in kept:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # The kernel adds our process number as the starter sees it (SCM_CREDENTIALS).
        send(channel, event="started")
        number = execute(command)
        send(channel, event="not-run", errno=number)
    finally:
        os._exit(127 if number == errno.ENOENT else 126)


def execute(command: list[bytes]) -> int:
    """Exec `command` as execvp(3) does; returns the errno if that fails."""
    # /proc/self/environ and not os.environ: bytes as they came, without what Python adds for its locale.
    with open("/proc/self/environ", "rb") as file:
        pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if b"=" in entry]
    environment = {name: value for name, _, value in pairs if name}
    name = command[0]
    if b"/" in name:
        paths = [name]
    else:
        folders = environment.get(b"PATH", os.defpath.encode()).split(b":")
        paths = [os.path.join(folder or b".", name) for folder in folders] if name else []
    worst = errno.ENOENT
    for path in paths:
        try:
            os.execve(path, command, environment)
        except OSError as error:
            number = error.errno or errno.ENOENT
        if number == errno.ENOEXEC:  # a script without a #! line
            try:
                os.execve(b"/bin/sh", [b"/bin/sh", path, *command[1:]], environment)
            except OSError as error:
                return error.errno or errno.ENOEXEC
        if number == errno.EACCES:
            worst = number  # another folder may still have one that can be executed
        elif number not in (errno.ENOENT, errno.ENOTDIR):
            return number
    return worst


# ---- enter ----


def enter(channel: socket.socket, config: dict[str, Any]) -> int:
    join_namespace(config["namespace"])
    fd, name = make_device(config["layer3"])
    configure_network(name, config)
    open_ping_range()
    hand_over(channel, fd, name)
    return 0


def leave(work: Any, channel: socket.socket) -> NoReturn:
    """Do `work`, report its failure to the starter, and end the process."""
    status = 1
    try:
        status = work()
    except Failed as failure:
        try_to_send(channel, str(failure))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        try_to_send(channel, f"cannot prepare the guest's namespace: {error.strerror}{where}")
    except Exception as error:
        try_to_send(channel, f"the namespace helper failed, which is a fault of tunstack: {error!r}")
    finally:
        os._exit(status)


def try_to_send(channel: socket.socket, sentence: str) -> None:
    with contextlib.suppress(OSError):  # the starter is gone, nobody is left to be told
        send(channel, event="failed", message=sentence)


def main() -> NoReturn:
    mode, fd, config = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)
    if mode == "run":
        command = [os.fsencode(argument) for argument in sys.argv[4:]]
        leave(lambda: run(channel, config, command), channel)
    leave(lambda: enter(channel, config), channel)


if __name__ == "__main__":
    main()
