"""How often checkpoints are read."""

import zipfile
from collections import Counter

import pytest
import torch


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Count from now on ``torch.load`` of whole files and of headers, and comparisons of tensors with checksums."""
    counts = Counter()
    load, open_member = torch.load, zipfile.ZipFile.open

    def counting_load(*args, mmap=None, **options):
        counts['header' if mmap else 'whole'] += 1
        return load(*args, mmap=mmap, **options)

    def counting_open(archive, name, *args, **options):
        counts['checksum'] += getattr(name, 'filename', name).endswith('/data/0')
        return open_member(archive, name, *args, **options)

    monkeypatch.setattr(torch, 'load', counting_load)
    monkeypatch.setattr(zipfile.ZipFile, 'open', counting_open)
    return counts
