"""Run a command as a process of its own without importing PyTorch again: in a forked copy of the test's process.

Such a process has its own signals, working directory, environment, standard streams and exit code, like one that a
shell starts. `python_for_scripts` gives the same to the scripts of shell/: an executable that takes the place of the
Python interpreter and hands `main.py …` to a server that forks.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork")


class Forked:
    """A process that runs a function.

    Args:
        work: what to run; its SystemExit is the exit code.
        cwd: working directory.
        env: the whole environment; by default that of this process.
        streams: file descriptors of input, output and errors; by default there is no input, and output and errors
            are kept.
        apart: keep the errors apart from the output.
    """

    def __init__(
        self, work: Callable[[], None], cwd: Path = ROOT, env: dict[str, str] | None = None,
        streams: list[int] | None = None, apart: bool = False,
    ):  # fmt: skip
        self.kept = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(1 + apart)]  # noqa: SIM115
        with open(os.devnull, "rb") as nothing:
            streams = streams or [nothing.fileno(), self.kept[0].fileno(), self.kept[-1].fileno()]
            self.process = FORK.Process(target=_run, args=(work, cwd, dict(env or os.environ), streams))
            self.process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self.process.pid

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def finish(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Wait for the end; the exit code is negative where a signal killed it."""
        self.process.join(timeout)
        assert not self.process.is_alive(), f"still running after {timeout} s"
        printed = []
        for file in self.kept:
            file.seek(0)
            printed.append(file.read())
            file.close()
        return subprocess.CompletedProcess([], self.process.exitcode, *printed)


def _run(work: Callable[[], None], cwd: Path, env: dict[str, str], streams: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    work()


def run_main(arguments: list[str]) -> Callable[[], None]:
    """What `python main.py ARGUMENTS` does, warnings left out."""

    def work() -> None:
        import warnings

        import main
        from training import distribution

        warnings.simplefilter("ignore")
        distribution.EXCEL_DIR = distribution.PUBLISHED_DIR
        sys.argv = [str(ROOT / "main.py"), *arguments]
        main.main(prog_name="python main.py")

    return work


# ------------------------------------------------------------------------------------ for scripts

SHIM = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] != [{main!r}]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
server.sendall(call)
code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


@functools.cache
def python_for_scripts() -> Path:
    """An executable that stands for the Python interpreter until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="glass-"))  # short: the address of a socket has at most 107 characters
    address, shim = str(folder / "socket"), folder / "python"
    shim.write_text(SHIM.format(python=sys.executable, main=str(ROOT / "main.py"), address=address))
    shim.chmod(0o755)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    server = FORK.Process(target=_serve, args=(listening, folder, os.getpid()))
    server.start()
    atexit.register(server.terminate)  # before multiprocessing, at the same place, waits for its end
    listening.close()
    return shim


def _serve(listening: socket.socket, folder: Path, parent: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    listening.settimeout(0.5)
    try:
        while os.getppid() == parent:  # it may be killed, and nothing is to outlive it
            _answer(listening)
    finally:
        shutil.rmtree(folder)


def _answer(listening: socket.socket) -> None:
    try:
        call, _ = listening.accept()
    except TimeoutError:
        return
    with call:
        size, streams, _, _ = socket.recv_fds(call, 8, 3)
        with call.makefile("rb") as file:
            arguments, cwd, env = json.loads(file.read(int.from_bytes(size, "big")))
        forked = Forked(run_main(arguments), Path(cwd), env, streams)
        for stream in streams:
            os.close(stream)
        code = forked.finish(600).returncode
        call.sendall(bytes([code if code >= 0 else 128 - code]))
