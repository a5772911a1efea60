"""`python -m launching.rehearsal.data FOLDER SET` writes one small data set."""

import sys
from pathlib import Path

from launching.rehearsal.data import make

if __name__ == "__main__":
    make(sys.argv[2], Path(sys.argv[1]))
