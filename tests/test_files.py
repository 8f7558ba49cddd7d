"""Files are written whole or not at all, whatever writes them, and what killed processes leave goes away."""

import errno
import os
import re
import signal
from pathlib import Path

import pytest

from deit_detr.errors import CannotWrite, UserError
from deit_detr.files import remove_leftovers, replacing, write_json, write_text
from tests.helpers.paths import REPO

PACKAGE = REPO / 'projects/deit_detr/deit_detr'


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_folder_and_link_appear_when_they_are_whole(tmp_path):
    write_json(tmp_path / 'new/run.json', dict(a=[1]))
    assert (tmp_path / 'new/run.json').read_text() == '{\n "a": [\n  1\n ]\n}\n'
    write_text(tmp_path / 'text', 'ä\udcff')
    assert (tmp_path / 'text').read_bytes() == 'ä?'.encode()
    with replacing(tmp_path / 'folder') as part:
        part.mkdir()
        (part / 'inside').touch()
        assert not (tmp_path / 'folder').exists() and part.name == 'folder'
    with replacing(tmp_path / 'link') as part:
        part.symlink_to('folder/inside')
    assert (tmp_path / 'link').resolve() == tmp_path / 'folder/inside'
    assert names(tmp_path) == ['folder', 'link', 'new', 'text']


def test_what_was_there_stays_when_writing_fails(tmp_path):
    write_text(tmp_path / 'file', 'old')
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / 'file') as part:
        part.write_text('half')
        1 / 0  # noqa: B018
    with pytest.raises(CannotWrite, match='No space left') as caught, replacing(tmp_path / 'file'):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
    assert str(caught.value).startswith(f'{tmp_path}/file: cannot be written (No space left on device). Files written')
    with pytest.raises(CannotWrite, match='file/below: cannot be written'):
        write_text(tmp_path / 'file/below', '')
    with pytest.raises(FileNotFoundError, match='missing'), replacing(tmp_path / 'file'):
        Path('missing').read_text()  # what the block reads is not what it writes
    assert (tmp_path / 'file').read_text() == 'old' and names(tmp_path) == ['file']


def test_killed_process_leaves_nothing_for_long(tmp_path):
    """A killed process leaves its unfinished files; the next one that writes the same, or is told to, removes them."""
    for name in ('one.pth', 'two.json'):
        child = os.fork()
        if child == 0:
            with replacing(tmp_path / name) as part:
                part.write_text('half')
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    write_text(tmp_path / 'one.pth', 'whole')
    assert names(tmp_path)[1] == 'one.pth' and len(names(tmp_path)) == 2
    (tmp_path / '.epoch_1.pth.4194399.tmp').touch()  # as version 0.1 left them
    (tmp_path / f'.three.{os.getppid()}.tmp').mkdir()  # being written
    (tmp_path / '.cache.tmp').touch()  # somebody else's
    assert remove_leftovers(tmp_path) == ['epoch_1.pth', 'two.json']
    assert names(tmp_path) == sorted(['.cache.tmp', f'.three.{os.getppid()}.tmp', 'one.pth'])


def test_there_is_no_other_way():
    """Nothing else in the package moves files to their place or has names for unfinished ones."""
    for path in PACKAGE.rglob('*.py'):
        if path.name != 'files.py':
            assert not re.search(r"\.tmp\b|\.part'|os\.rename", path.read_text()), path
