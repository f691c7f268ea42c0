"""Make `python -m src.<command>` find the package rsna; `python src/<command>.py` finds it without this."""

import sys

sys.path.insert(0, __path__[0])
