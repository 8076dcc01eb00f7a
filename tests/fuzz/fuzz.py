"""Fuzz one target with atheris: ``python tests/fuzz/fuzz.py events -max_total_time=60``.

Needs the extra ``fuzz``. What follows the target's name goes to libFuzzer. An input that fails is
kept in ``tests/fuzz/regressions/TARGET``, where the suite replays it for ever.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["lanecache"]):
    from targets import TARGETS, seeds


def main() -> None:
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    kept = HERE / "regressions" / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(name)):
            (Path(folder) / f"{number:05d}").write_bytes(seed)
        limits = ["-timeout=5", "-rss_limit_mb=1500", "-max_len=20000", "-verbosity=0"]
        arguments = [sys.argv[0], f"-artifact_prefix={kept}/", *limits, *options, folder]
        atheris.Setup(arguments, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
