"""A Python that starts warm: a new process for a test in some 0.1 s of computing, not the 3 s of importing PyTorch.

A server (`warm_python_server.py`) imports the large packages once, none of this project's. `python()` is an interpreter
whose processes are forked from it: modules, arguments, environment, folder, files, signals and exit status are those
of `sys.executable`, given the same. They compute with one thread. What tests imports, or kills with `Popen.kill` and
looks at once, wants `sys.executable` itself.
"""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# In the place of the interpreter: hands over all that a process is given, and ends as the forked one ends.
CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys
words = sys.argv[1:]
unbuffered = words[:1] == ["-u"]
words = words[unbuffered:]
if not words or words[0].startswith("-") and words[0] not in ("-m", "-c"):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
connection = socket.socket(socket.AF_UNIX)
connection.connect("{address}")
request = dict(words=words, unbuffered=unbuffered, environ=dict(os.environ), folder=os.getcwd(), python=sys.argv[0])
text = json.dumps(request).encode()
files = array.array("i", [0, 1, 2])
connection.sendmsg([len(text).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
connection.sendall(text)
child = int.from_bytes(connection.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = os.waitstatus_to_exitcode(int.from_bytes(connection.recv(4), "big"))
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def python() -> str:
    """The path of the interpreter."""
    folder = tempfile.TemporaryDirectory(prefix="warm_python_")
    address, client = f"{folder.name}/socket", Path(folder.name, "python")
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("warm_python_server.py"), address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def stop() -> None:
        server.communicate()  # ends its input, and with it the server
        folder.cleanup()

    atexit.register(stop)
    return str(client)
