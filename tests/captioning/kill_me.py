"""A run that a test kills: ``python kill_me.py INPUT OUT FORMAT PAUSE_S``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from instant import Instant

from fastvlm.captioning import caption

if __name__ == "__main__":
    given, out, kind, pause_s = sys.argv[1:]
    caption(given, out, ["P", "Q"], Instant(pause_s=float(pause_s)), format=kind, rows_per_part=40)
