"""Whether all of the project works on this machine's GPU: ``tools/check_gpu.sh``.

``rows`` makes checks and survives them, ``setting`` has recipes and rooms, ``machine``, ``training``, ``losses`` and
``commands`` look, ``run`` does it all.
"""
