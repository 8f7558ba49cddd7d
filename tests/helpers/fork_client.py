"""Hand a Python command to a fork server. As a script, be the ``python`` of a shell; only the standard library's start.

    python -I -S fork_client.py ADDRESS PYTHON [arguments of python]
"""

import contextlib
import json
import os
import signal
import socket
import sys

#: The answer to a command that needs a new interpreter.
REFUSED = b'refused'


def ask(address: str, command: list[str], cwd: str, env: dict[str, str], streams: list[int]) -> socket.socket:
    """Send the arguments of ``python``; the answer is the status, and closing the connection kills the command."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps([command, cwd, env]).encode()], streams)
    return connection


if __name__ == '__main__':
    address, python, *command = sys.argv[1:]
    answer = ask(address, command, os.getcwd(), dict(os.environ), [0, 1, 2]).recv(99)
    if answer == REFUSED:
        os.execv(python, [python, *command])
    status = int(answer)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
