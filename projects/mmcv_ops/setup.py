"""Build in a temporary folder: a build folder in the sources would add deleted files to a wheel."""

import atexit
import shutil
import tempfile

from setuptools import setup

folder = tempfile.mkdtemp()
atexit.register(shutil.rmtree, folder, ignore_errors=True)
setup(options=dict(build=dict(build_base=folder), egg_info=dict(egg_base=folder)))
