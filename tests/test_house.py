"""The structure of the repository: import rules, and names in the documents."""

import re

from tests.helpers.paths import REPO

PACKAGE = REPO / 'projects/deit_detr/deit_detr'


def test_imports_keep_the_rules_of_contributing(capsys, monkeypatch):
    import importlinter.api  # noqa: F401 - registers the kinds of rules
    from importlinter.application.use_cases import lint_imports

    monkeypatch.chdir(REPO)
    assert lint_imports(str(REPO / 'pyproject.toml'), cache_dir=None, no_logo=True), capsys.readouterr().out


def test_contributing_has_a_line_for_each_wing():
    text = (REPO / 'CONTRIBUTING.md').read_text()
    wings = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert wings and not {wing for wing in wings if not re.search(f'`{wing}/?`', text)}


def test_no_test_file_imports_another():
    for path in (REPO / 'tests').rglob('*.py'):
        assert not re.search(r'(from|import) tests\.[\w.]*\btest_', path.read_text()), path


def test_tests_that_the_documents_name_exist():
    """As ``engine/test_x.py::test_y``, with or without ``tests/``; a ``::test_z`` after it is in the same file."""
    for page in [*REPO.glob('*.md'), *REPO.glob('docs/*.md'), *REPO.glob('projects/*/README.md')]:
        path = None
        for name, test in re.findall(r'((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?', page.read_text()):
            if name:
                path = REPO / 'tests' / name.removeprefix('tests/')
                assert path.is_file(), f'{page.name} names {name}'
            if test:
                assert f'\ndef {test}(' in path.read_text(), f'{page.name} names {path.name}::{test}'
