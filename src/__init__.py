"""Lets `python -m src.<command>` find the package rsna, which `python src/<command>.py` finds by itself."""

import sys

sys.path.insert(0, __path__[0])
