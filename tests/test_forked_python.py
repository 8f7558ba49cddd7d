"""The ``python`` that tests give to shells is what a new interpreter is, except for what it has imported."""

import os
import sys

import pytest

from tests.helpers.fork_server import SERVER

SCRIPT = (
    'import os, sys\nprint(__name__, sys.argv[1:], sys.path[0], os.getcwd(), os.environ["NAME"], sys.stdin.read())\n'
    'print("to stderr", file=sys.stderr)\n')


@pytest.mark.parametrize('command', [
    'python script.py a "b c" <input', 'python -u -W ignore script.py <input', 'python -c "$(cat script.py)" a <input',
    'python - a <script.py', 'python -m script a <input', 'python -c "import sys; sys.exit(3)"; echo $?',
    'python -c "1 / 0" 2>&1 | tail -n 1', 'python -c "import os; os.kill(os.getpid(), 15)"; echo $?',
    'echo "print(7)" | python; python --version', 'cd /; python -c "import os; print(os.getcwd())"'])
def test_it_behaves_as_a_new_interpreter(command, run, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    (tmp_path / 'input').write_text('from the input')
    plain = dict(PATH=f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}', NAME='x')
    assert run('bash', '-c', command, **plain) == run('bash', '-c', command, **SERVER.shell(), NAME='x')


@pytest.mark.parametrize('command, shared', [
    ('python', True), ('OMP_NUM_THREADS=7 python', False), ('PYTHONPATH=x python', False), ('python -B', False),
    ('RANK=1 TORCHELASTIC_RUN_ID=1 python', True)])
def test_imports_are_shared_unless_libraries_would_start_differently(command, shared, run):
    code = '-c "import sys; print(\'mmdet.models\' in sys.modules)"'
    assert run('bash', '-c', f'{command} {code}', **SERVER.shell()).strip() == str(shared)
