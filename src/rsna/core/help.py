"""What `help` and `help all` print: the settings with their defaults."""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from rsna.core.config import GROUPS
from rsna.core.presets import PRESETS, WORKSPACE


def help_text(models: Mapping[str, type] | None = None) -> str:
    """The common settings; or, given the settings of each model by its name, all of them."""
    everything = models is not None
    lines = ["settings, written key=value" + ("" if everything else "; 'help all' lists every one") + ":"]
    for group in GROUPS:
        lines += [line_of(f) for f in fields(group) if everything or f.metadata["common"]]
    for name, group in (models or {}).items():
        lines += [f"of model={name}:", *(line_of(f) for f in fields(group))]
    for name, overrides in PRESETS.items() if everything else ():
        words = " ".join(f"{key}={value}" for key, value in overrides.items())
        lines.append(f"preset={name} is: {words}".replace(str(WORKSPACE), "<workspace>"))
    return "\n".join(lines)


def line_of(field: Field[Any]) -> str:
    """`  lr=0.001     peak learning rate ...`"""
    default = str(field.default).replace(str(WORKSPACE), "<workspace>") or "''"
    return f"  {field.name + '=' + default:<36} {field.metadata['meaning']}"
