"""Run scripts in processes that do not import torch and mmdet again, which takes seconds for each.

A server imports ``deit_detr``, as every script does first. For each script it forks a child, which then behaves as
``python SCRIPT ...``: with its own folder, environment, arguments, streams and ``__main__``, and with the usual end of
the interpreter. A script still has to import what the package does not import. A shell can have such a ``python``.
"""

import ast
import atexit
import contextlib
import functools
import gc
import glob
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import yapf

from tests.helpers.fork_client import REFUSED, ask
from tests.helpers.paths import REPO

LIBRARIES = ('deit_detr', 'mmdet.apis', 'matplotlib.pyplot', 'torch.utils.cpp_extension', 'torch.utils.tensorboard')
#: The interpreter and the libraries read these when they start: a script for which they differ gets a new interpreter.
READ_AT_START = (
    'PYTHON', 'CUDA_', 'TORCH', 'OMP_', 'MKL_', 'OPENBLAS_', 'KMP_', 'GOMP_', 'LD_', 'MPL')
#: Exceptions: torch sets the first when it compiles something, and torchrun the others for its workers.
READ_LATER = ('TORCHINDUCTOR_CACHE_DIR', 'TORCHELASTIC', 'TORCH_NCCL_', 'PYTHON_EXEC')
#: How the arguments of ``python`` begin in a process that can be forked.
STARTS = re.compile(r'(-u )?(-W \S+ )?(-c |-m |-( |$)|\S+\.py\b)')
#: Scripts can import ``tests.helpers``.
ON_PATH = dict(PYTHONPATH=str(REPO))
#: CUDA does not survive a fork: the server and its children see no GPU.
NO_GPU = dict(CUDA_VISIBLE_DEVICES='')
#: With this variable, processes that a script spawns are forked, so that they also need no new imports; with those of
#: ``ForkServer.shell`` also the commands that it starts with ``sys.executable``.
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
    """The client in the tests; the first script starts the server.

    Args:
        libraries: What the server imports.
        **env: Variables of the server and of what it runs, besides those of this process.
    """

    def __init__(self, libraries: Sequence[str] = LIBRARIES, **env: object) -> None:
        self.libraries = libraries
        self.own = {key: str(value) for key, value in env.items()}
        self.process = None

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix='fork_server')
        self.address = f'{self.folder.name}/socket'
        self.connection, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'tests.helpers.fork_server', self.address, str(theirs.fileno()),
                 *self.libraries], cwd=REPO, pass_fds=[theirs.fileno()],
                env=os.environ | ON_PATH | NO_GPU | self.own, stdin=subprocess.DEVNULL)
        assert self.connection.recv(9) == b'ready', 'the fork server does not start'
        atexit.register(self.end)

    def end(self) -> None:
        """End the server."""
        if self.process and self.process.returncode is None:
            self.connection.close()
            self.process.wait()
            self.folder.cleanup()

    def shell(self) -> dict[str, str]:
        """Return the variables with which the ``python`` of a shell, and of torchrun's workers, is a forked one."""
        if self.process is None:
            self._start()
        python = Path(self.folder.name, 'python')
        if not python.exists():
            client = str(Path(__file__).with_name('fork_client.py'))
            words = shlex.join([sys.executable, '-I', '-S', client, self.address, sys.executable])
            python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            python.chmod(0o755)
        path = f'{self.folder.name}{os.pathsep}{os.environ["PATH"]}'
        return ON_PATH | self.own | dict(PATH=path, PYTHON_EXEC=str(python))

    def run(
        self, command: list[str], cwd: str, env: dict[str, str], timeout: float, merged: bool,
    ) -> subprocess.CompletedProcess | None:
        """Run a command as ``subprocess.run`` does; ``merged`` sends stderr to stdout. None if it is refused."""
        if self.process is None:
            self._start()
        with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err, open(os.devnull) as nothing:
            with ask(self.address, command[1:], cwd, env, [
                    nothing.fileno(), out.fileno(), (out if merged else err).fileno()]) as connection:
                connection.settimeout(timeout)
                try:
                    answer = connection.recv(99)
                except TimeoutError:
                    out.seek(0)
                    raise subprocess.TimeoutExpired(command, timeout, out.read()) from None
            if answer == REFUSED:
                return None
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, int(answer), out.read(), None if merged else err.read())

    def start(
        self, *command: object, cwd: Path, env: dict | None = None, timeout: float = 600, merged: bool = True,
        own_start: bool = False,
    ) -> subprocess.CompletedProcess:
        """Run a command and capture its output as text.

        Args:
            *command: Program and arguments.
            cwd: Its folder.
            env: Variables besides those of this process and of the server.
            timeout: In seconds.
            merged: Send stderr to stdout.
            own_start: Start a Python script in a new interpreter, for tests of what happens when it imports.
        """
        words = list(map(str, command))
        variables = os.environ | ON_PATH | self.own | {key: str(value) for key, value in (env or {}).items()}
        script = words[3:4] if words[1:2] == ['-W'] else words[1:2]
        if words[0] in ('python', sys.executable) and ''.join(script).endswith('.py') and not own_start:
            result = self.run(words, str(cwd), variables, timeout, merged)
            if result:
                return result
        return subprocess.run(
            words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE)


SERVER = ForkServer()
start = SERVER.start


def read_at_start(env: dict[str, str]) -> dict[str, str]:
    """Return the variables for which a new interpreter is needed."""
    if not glob.glob('/dev/nvidia[0-9]*'):
        env = env | NO_GPU
    return {name: value for name, value in env.items()
            if name.startswith(READ_AT_START) and not name.startswith(READ_LATER)}


def serve(address: str, tests: socket.socket, ours: dict[str, str]) -> list[str] | None:
    """Fork a keeper for each request, and in it a child.

    Args:
        address: Where to listen.
        tests: A connection that is closed when the tests have ended.
        ours: What a request's :func:`read_at_start` has to be.

    Returns:
        list[str] | None: In a child its command, in the server None.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        tests.send(b'ready')
        keepers = set()
        while True:
            ready, _, _ = select.select([listener, tests], [], [], 60)
            if tests in ready:
                return None
            keepers = {keeper for keeper in keepers if os.waitpid(keeper, os.WNOHANG)[0] == 0}
            if listener not in ready:
                continue
            connection, _ = listener.accept()
            with connection:
                keeper = os.fork()
                if keeper:
                    keepers.add(keeper)
                    continue
                tests.close()
                listener.close()
                return keep(connection, ours)


def keep(connection: socket.socket, ours: dict[str, str]) -> list[str]:
    """Fork a child for one request and return its command there; here wait for its end, and end."""
    request, streams, *_ = socket.recv_fds(connection, 2**20, 3)
    command, cwd, env = json.loads(request)
    if read_at_start(env) != ours or not STARTS.match(' '.join(command)):
        connection.send(REFUSED)
        os._exit(0)
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        return command
    for stream in streams:
        os.close(stream)
    end = os.pidfd_open(child)
    if end not in select.select([end, connection], [], [])[0]:  # who asked is gone
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def become(command: list[str]) -> None:
    """Run what :data:`STARTS` matches as the interpreter does."""
    if command[0] == '-u':
        sys.stdout.reconfigure(line_buffering=True)
        command = command[1:]
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
        sys.executable = os.environ.get('PYTHON_EXEC', sys.executable)
    kind, sys.argv = command[0], command
    if kind == '-m':
        sys.path[0], sys.argv = os.getcwd(), command[1:]
        runpy.run_module(command[1], run_name='__main__', alter_sys=True)
        return
    sys.modules['__main__'] = main = types.ModuleType('__main__')
    if kind in ('-c', '-'):
        sys.path[0], name, code = '', '<string>', command[1] if kind == '-c' else sys.stdin.read()
        sys.argv = ['-c', *command[2:]] if kind == '-c' else command
    else:
        sys.path[0], name, code = str(Path(kind).resolve().parent), kind, Path(kind).read_bytes()
        main.__file__ = os.path.abspath(kind)
    exec(compile(code, name, 'exec'), vars(main))


def leave() -> None:
    """End a child after all that an interpreter does at its end, except freeing memory, which is shared."""
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == '__main__':
    status = None
    atexit.register(leave)  # the first one is called last
    started_with = read_at_start(dict(os.environ))  # deit_detr sets one of them
    for name in sys.argv[3:]:
        importlib.import_module(name)
    speed_up_mmengine()
    script_command = serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])), started_with)
    if script_command:
        status = 1  # as after an exception
        try:
            become(script_command)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
