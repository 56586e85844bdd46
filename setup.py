"""Build the compiled modules in place:  python setup.py build_ext --inplace

meson.build alone describes the build.  pip and `python -m build` reach it
through meson-python (see pyproject.toml) and never run this file, which is
the door for `make` and for people who type the old command.  It holds no
source list, no flags and no metadata, and it must not import setuptools:
that would be a second build.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent


def build_in_place(options: list[str]) -> None:
    """Configure once per interpreter, compile, and copy the modules beside their sources."""
    build = ROOT / "build" / f"inplace-{sys.implementation.cache_tag}"
    # meson looks the interpreter up on PATH; the one that runs this file is the one that is meant.
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    if not (build / "build.ninja").exists():
        subprocess.run(["meson", "setup", build, ROOT, *options], check=True, env=environment)
    elif options:
        subprocess.run(["meson", "configure", build, *options], check=True, env=environment)
    subprocess.run(["meson", "compile", "-C", build], check=True, env=environment)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for module in (build / "fastsmtp").rglob(f"*{suffix}"):
        # A running server has the old file mapped: replace the name, never the contents.
        target = ROOT / module.relative_to(build)
        fresh = target.with_name(f".{module.name}.new")
        shutil.copy2(module, fresh)
        fresh.replace(target)


if __name__ == "__main__":
    command, options = sys.argv[1:3], sys.argv[3:]
    if command not in (["build_ext", "--inplace"], ["build_ext", "-i"]):
        sys.exit(f"{__doc__}\nTo install: python -m pip install .")
    try:
        build_in_place(options)
    except FileNotFoundError:
        sys.exit(
            "meson is not installed for this Python: run `make build`, or pip install meson ninja Cython"
        )
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)  # meson has said why
