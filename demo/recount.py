"""`python -m demo.recount FOLDER BROKEN`: the oracle in a process of its own, beside the pipeline that is settling."""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path

from demo.plan import METER_SET
from demo.verify import recount
from pipeline.open import read_meter_set

if __name__ == "__main__":
    # Nothing is thrown away before the end, and looking for it would take a quarter of the time.
    gc.disable()
    sys.stdout.buffer.write(pickle.dumps(recount(Path(sys.argv[1]), read_meter_set(METER_SET), int(sys.argv[2]))))
