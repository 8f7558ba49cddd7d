"""Build in a temporary folder: one left in the sources would put files into a wheel that are no longer there."""

import atexit
import shutil
import tempfile

from setuptools import setup

folder = tempfile.mkdtemp()
atexit.register(shutil.rmtree, folder, ignore_errors=True)
setup(options=dict(build=dict(build_base=folder), egg_info=dict(egg_base=folder)))
