"""Prove that the fuzzer finds things:  python tests/fuzz/prove.py [SECONDS]

Builds the package with -Dseeded_defect=true into build/fuzz-proof: the DATA decoder then takes LF . CR LF for
the end of data behind two rare octets, which is how a second message is smuggled inside the first.  The data
target must find it within SECONDS (default 60), and the input it found must be harmless to the sound build.
The name of the kept input is printed.  Exit 0: found.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from tests.fuzz import run

PROOF = run.ROOT / "build" / "fuzz-proof"


def main(seconds: int) -> int:
    library = run.libfuzzer()
    if library is None:
        print(run.MISSING, end="", file=sys.stderr)
        return 2
    run.build(run.BUILD, library)
    run.build(PROOF, library, "-Dseeded_defect=true")
    # From the committed corpus alone: what earlier runs have learnt must not help.
    for folder in ("corpus", "crashes"):
        shutil.rmtree(PROOF / folder, ignore_errors=True)
    started_s = time.monotonic()
    done = run.fuzz("data", seconds, PROOF)
    took_s = time.monotonic() - started_s
    found = sorted((PROOF / "crashes").glob("data-crash-*"))
    if done.returncode == 0 or not found or "AssertionError" not in done.stdout:
        print(f"NOT FOUND in {took_s:.0f} s ({run.figures(done.stdout)})\n{done.stdout[-3000:]}")
        return 1
    sound = run.replay("data", found[0])
    if sound.returncode != 0:
        print(f"the sound build breaks on {found[0]} as well\n{sound.stdout[-3000:]}")
        return 1
    print(f"found after {took_s:.1f} s: {found[0].read_bytes()!r}\n{found[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 60))
