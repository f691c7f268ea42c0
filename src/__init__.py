"""Lets `python -m src.<command>` find the package rsna, which `python src/<command>.py` finds by itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
