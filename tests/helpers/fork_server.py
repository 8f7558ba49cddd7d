"""Scripts as processes of their own that need not import torch and mmdet again, which takes seconds for each.

A server has done what every script begins with, ``import deit_detr``. For each script it forks a child, which becomes
what ``python SCRIPT ...`` is: folder, environment, arguments, output, a ``__main__`` of its own, and in the end the
interpreter's usual one. What the package does not import by itself, a script has to import.
"""

import atexit
import functools
import gc
import glob
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy

from tests.helpers.paths import REPO

LIBRARIES = ('deit_detr', 'mmdet.apis', 'matplotlib.pyplot', 'torch.utils.cpp_extension', 'torch.utils.tensorboard')
#: The interpreter and the libraries read these at their start: a script for which they differ gets one of its own.
READ_AT_START = (
    'PATH', 'PYTHON', 'CUDA_', 'TORCH', 'OMP_', 'MKL_', 'OPENBLAS_', 'KMP_', 'GOMP_', 'LD_',
    'MPL')
#: What tests start can import ``tests.helpers``.
ON_PATH = dict(PYTHONPATH=str(REPO))
#: CUDA does not survive a fork, so the server is without a GPU, and so has to be what it runs.
NO_GPU = dict(CUDA_VISIBLE_DEVICES='')


def speed_up_mmengine() -> None:
    """Neither changes a result: what mmengine does again and again for each runner and each data set is done once.

    yapf lays out a runner's config four times, a second each; and a collection, which each data set begins with, walks
    through all libraries.
    """
    module = sys.modules.get('mmengine.config.config')
    if module and not hasattr(module.FormatCode, 'cache'):
        plain = module.FormatCode
        layout = functools.cache(lambda text, style, options: plain(text, style_config=dict(style), **dict(options)))

        def remembered(text: str, style_config: dict, **options: object) -> tuple:
            return layout(text, tuple(style_config.items()), tuple(options.items()))

        remembered.cache = layout
        module.FormatCode = remembered
    gc.collect()
    gc.freeze()


class ForkServer:
    """The tests' side; the server is started with the first script."""

    def __init__(self) -> None:
        self.process = None

    def _start(self) -> None:
        self.env = os.environ | ON_PATH | NO_GPU
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'tests.helpers.fork_server', str(theirs.fileno())], pass_fds=[theirs.fileno()],
                env=self.env, stdin=subprocess.DEVNULL)
        assert self.connection.recv(9) == b'ready', 'the fork server does not start'
        atexit.register(self._end)

    def _end(self) -> None:
        self.connection.close()
        self.process.wait()

    def takes(self, command: list[str], env: dict[str, str]) -> bool:
        """Whether a command can be forked: ``python [-W FILTER] SCRIPT ...`` in the environment of the server."""
        place = 3 if command[1:2] == ['-W'] else 1
        if command[0] not in ('python', sys.executable) or not ''.join(command[place : place + 1]).endswith('.py'):
            return False
        if self.process is None:
            self._start()
        if not glob.glob('/dev/nvidia[0-9]*'):
            env = env | NO_GPU
        theirs, ours = (
            {name: value for name, value in variables.items() if name.startswith(READ_AT_START)}
            for variables in (self.env, env))
        return theirs == ours

    def run(
        self, command: list[str], cwd: str, env: dict[str, str], timeout: float, merged: bool,
    ) -> subprocess.CompletedProcess:
        """Like ``subprocess.run``; ``merged``: stderr goes where stdout goes."""
        with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
            self.connection.settimeout(None)
            socket.send_fds(
                self.connection, [json.dumps([command[1:], cwd, env]).encode()],
                [out.fileno(), (out if merged else err).fileno()])
            pid = int(self.connection.recv(99))
            self.connection.settimeout(timeout)
            try:
                status = int(self.connection.recv(99))
            except BaseException as error:  # also a KeyboardInterrupt
                os.kill(pid, signal.SIGKILL)
                self.connection.settimeout(None)
                self.connection.recv(99)
                if isinstance(error, TimeoutError):
                    out.seek(0)
                    raise subprocess.TimeoutExpired(command, timeout, out.read()) from None
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, status, out.read(), None if merged else err.read())


SERVER = ForkServer()


def start(
    *command: object, cwd: Path, env: dict | None = None, timeout: float = 600, merged: bool = True,
    own_start: bool = False,
) -> subprocess.CompletedProcess:
    """Run a command and capture its output as text.

    Args:
        *command: Program and arguments.
        cwd: Its folder.
        env: Variables besides those of this process.
        timeout: In seconds.
        merged: Whether stderr goes where stdout goes.
        own_start: Whether a Python script has to begin with an interpreter that has not imported anything, because that
            is what is tested.
    """
    words = list(map(str, command))
    variables = os.environ | ON_PATH | {key: str(value) for key, value in (env or {}).items()}
    if not own_start and SERVER.takes(words, variables):
        return SERVER.run(words, str(cwd), variables, timeout, merged)
    return subprocess.run(
        words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE)


def serve(connection: socket.socket) -> list[str] | None:
    """Fork a child for each request. Returns its command in a child, and ``None`` when the tests have ended."""
    while True:
        request, descriptors, *_ = socket.recv_fds(connection, 2**20, 2)
        if not request:
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            command, cwd, env = json.loads(request)
            for number, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(env)
            return command
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(pid).encode())
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def become(command: list[str]) -> None:
    """Be the interpreter of ``[-W FILTER] SCRIPT ...``."""
    if command[0] == '-W':
        warnings.simplefilter(command[1])
        sys.warnoptions.append(command[1])
        command = command[2:]
    # unlike torch's, their generators begin anywhere, not where the server's are
    random.seed()
    numpy.random.seed()
    script, sys.argv = command[0], command
    sys.path[0] = str(Path(script).resolve().parent)
    sys.modules['__main__'] = main = types.ModuleType('__main__')
    main.__file__ = os.path.abspath(script)
    exec(compile(Path(script).read_bytes(), script, 'exec'), vars(main))


def leave() -> None:
    """End a child after everything that an interpreter does at its end, but for freeing memory: it is shared."""
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == '__main__':
    status = None
    atexit.register(leave)  # the first one is called last
    for name in LIBRARIES:
        importlib.import_module(name)
    speed_up_mmengine()
    tests = socket.socket(fileno=int(sys.argv[1]))
    tests.send(b'ready')
    script_command = serve(tests)
    if script_command:
        status = 1  # as after an exception
        try:
            become(script_command)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
