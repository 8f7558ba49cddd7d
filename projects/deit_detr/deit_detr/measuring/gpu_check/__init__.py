"""Checks that the whole project works on this machine's GPU: ``tools/check_gpu.sh``.

``rows`` runs checks and turns them into rows of a table, ``setting`` provides recipes and rooms, ``machine``,
``training``, ``losses`` and ``commands`` hold the checks, and ``run`` runs all of them. A check returns its findings in
one line; it raises ``Failed`` for a fault, and ``Skipped`` if it cannot run on this machine.
"""
