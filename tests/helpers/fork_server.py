"""Run scripts in processes that do not import torch and mmdet again, which takes seconds for each.

A server imports ``deit_detr``, as every script does first. For each script it forks a child, which then behaves as
``python SCRIPT ...``: with its own folder, environment, arguments, output and ``__main__``, and with the usual end of
the interpreter. A script still has to import what the package does not import.
"""

import ast
import atexit
import functools
import gc
import glob
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy
import yapf

from tests.helpers.paths import REPO

LIBRARIES = ('deit_detr', 'mmdet.apis', 'matplotlib.pyplot', 'torch.utils.cpp_extension', 'torch.utils.tensorboard')
#: The interpreter and the libraries read these when they start: a script for which they differ gets a new interpreter.
READ_AT_START = (
    'PATH', 'PYTHON', 'CUDA_', 'TORCH', 'OMP_', 'MKL_', 'OPENBLAS_', 'KMP_', 'GOMP_', 'LD_', 'MPL')
#: An exception: torch sets it in this process when it compiles something.
SET_LATER = 'TORCHINDUCTOR_CACHE_DIR'
#: Scripts can import ``tests.helpers``.
ON_PATH = dict(PYTHONPATH=str(REPO))
#: CUDA does not survive a fork: the server and its children see no GPU.
NO_GPU = dict(CUDA_VISIBLE_DEVICES='')
#: With this variable, processes that a script spawns are forked, so that they also need no new imports.
FORK_SPAWNED = 'FORK_SPAWNED'
#: Formatted statements of configs, by the hash of the plain one.
LAYOUTS = REPO / '.pytest_cache/layouts'


def layout(text: str, style: tuple, options: tuple, plain: Callable) -> str:
    """Format one statement of a config as yapf does, once for all processes of all runs."""
    name = hashlib.sha256(repr((yapf.__version__, style, options, text)).encode()).hexdigest()
    path = LAYOUTS / name
    if not path.exists():
        LAYOUTS.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f'.{os.getpid()}')
        part.write_text(plain(text, style_config=dict(style), **dict(options))[0])
        part.replace(path)
    return path.read_text()


def speed_up_mmengine() -> None:
    """Do once what mmengine repeats for each runner and each data set; no result changes.

    Each runner formats its config with yapf four times, which takes a second each; yapf formats each statement by
    itself. Each data set begins with a garbage collection, which walks through the objects of all libraries.
    """
    module = sys.modules.get('mmengine.config.config')
    if module and not hasattr(module.FormatCode, 'plain'):
        plain = module.FormatCode
        once = functools.cache(functools.partial(layout, plain=plain))

        def remembered(text: str, style_config: dict, **options: object) -> tuple:
            lines = text.splitlines(keepends=True)
            statements = [''.join(lines[node.lineno - 1 : node.end_lineno]) for node in ast.parse(text).body]
            rest = tuple(style_config.items()), tuple(options.items())
            return ''.join(once(statement, *rest) for statement in statements), True

        remembered.plain = plain
        module.FormatCode = remembered
    gc.collect()
    gc.freeze()


class ForkServer:
    """The client in the tests; the first script starts the server."""

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
        """Tell whether a command can be forked: ``python [-W FILTER] SCRIPT ...`` in the environment of the server."""
        place = 3 if command[1:2] == ['-W'] else 1
        if command[0] not in ('python', sys.executable) or not ''.join(command[place : place + 1]).endswith('.py'):
            return False
        if self.process is None:
            self._start()
        if not glob.glob('/dev/nvidia[0-9]*'):
            env = env | NO_GPU
        theirs, ours = (
            {name: value for name, value in variables.items() if name.startswith(READ_AT_START) and name != SET_LATER}
            for variables in (self.env, env))
        return theirs == ours

    def run(
        self, command: list[str], cwd: str, env: dict[str, str], timeout: float, merged: bool,
    ) -> subprocess.CompletedProcess:
        """Run a command as ``subprocess.run`` does; ``merged`` sends stderr to stdout."""
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
        merged: Send stderr to stdout.
        own_start: Start a Python script in a new interpreter, for tests of what happens when it imports.
    """
    words = list(map(str, command))
    variables = os.environ | ON_PATH | {key: str(value) for key, value in (env or {}).items()}
    if not own_start and SERVER.takes(words, variables):
        return SERVER.run(words, str(cwd), variables, timeout, merged)
    return subprocess.run(
        words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE)


def serve(connection: socket.socket) -> list[str] | None:
    """Fork a child for each request; return its command in the child, and ``None`` when the tests have ended."""
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
    """Run ``[-W FILTER] SCRIPT ...`` as the interpreter does."""
    if command[0] == '-W':
        warnings.simplefilter(command[1])
        sys.warnoptions.append(command[1])
        command = command[2:]
    # a new interpreter seeds these at random (torch has a fixed seed)
    random.seed()
    numpy.random.seed()
    if os.environ.pop(FORK_SPAWNED, ''):
        fork = multiprocessing.get_context('fork')
        multiprocessing.get_context = lambda method=None: fork
    script, sys.argv = command[0], command
    sys.path[0] = str(Path(script).resolve().parent)
    sys.modules['__main__'] = main = types.ModuleType('__main__')
    main.__file__ = os.path.abspath(script)
    exec(compile(Path(script).read_bytes(), script, 'exec'), vars(main))


def leave() -> None:
    """End a child after all that an interpreter does at its end, except freeing memory, which is shared."""
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
