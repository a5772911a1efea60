"""The server of warm_python.py: imports, listens, and forks a process for each that connects."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

PACKAGES = """
numpy pandas scipy.stats sklearn.datasets matplotlib.pyplot plotly.graph_objects jinja2
torch torch._dynamo torch.distributed.run torch.utils.tensorboard tensorboard.plugins.hparams.api_pb2 torch.export
jax flax.linen optax orbax.checkpoint tensorflow tensorflow_datasets tensorflow_text
"""


class Server:
    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen()
        self.selector = selectors.DefaultSelector()
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.children: dict[int, tuple[int, socket.socket]] = {}  # by a handle: its number, its other half

    def serve(self) -> dict[str, Any]:
        """Returns in a child alone: what that is asked to be. Exits when the input of the server ends."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    for child, _ in self.children.values():
                        os.kill(child, signal.SIGKILL)
                    sys.exit()
                if key.fileobj is self.listener:
                    request = self.fork()
                    if request is not None:
                        return request
                elif key.fd in self.children:
                    self.report(key.fd)
                else:  # the other half is dead
                    self.selector.unregister(key.fileobj)
                    if key.data in self.children:
                        os.kill(self.children[key.data][0], signal.SIGKILL)

    def fork(self) -> dict[str, Any] | None:
        connection = self.listener.accept()[0]
        length, files, _, _ = socket.recv_fds(connection, 4, 3)
        request = json.loads(connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # what is sent to its group is not for the server
            for number, file in enumerate(files):
                os.dup2(file, number)
            for held in (self.selector, self.listener, connection, *(half for _, half in self.children.values())):
                held.close()
            for file in (*files, *self.children):
                os.close(file)
            return request
        for file in files:
            os.close(file)
        handle = os.pidfd_open(child)
        self.children[handle] = child, connection
        self.selector.register(handle, selectors.EVENT_READ)
        self.selector.register(connection, selectors.EVENT_READ, data=handle)
        connection.sendall(child.to_bytes(4, "big"))
        return None

    def report(self, handle: int) -> None:
        """The exit status of a child, to its other half."""
        child, connection = self.children.pop(handle)
        status = os.waitpid(child, 0)[1]
        self.selector.unregister(handle)
        os.close(handle)
        if connection in self.selector.get_map():
            self.selector.unregister(connection)
            connection.sendall(status.to_bytes(4, "big"))
        connection.close()


def become(words: list[str], unbuffered: bool, environ: dict[str, str], folder: str, python: str) -> None:
    """What the interpreter does with its arguments."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(write_through=unbuffered)
    sys.executable, sys.orig_argv = python, [python, *words]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # of its own, as it is after an import
    kind, *rest = words
    first = {"-m": folder, "-c": ""}.get(kind, str(Path(kind).resolve().parent))
    sys.path[:1] = [first, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    status: int | None = None

    @atexit.register  # as the first, so that it runs last: to tear all modules down takes a second
    def leave() -> None:
        if status is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    server = Server(sys.argv[1])
    print("ready", flush=True)
    for name in PACKAGES.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each process copies all that is there, at its first collection
    request = server.serve()
    try:
        become(**request)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
