"""Print every layer of the network with its shapes and parameters, and what each phase trains.

./run.sh show_model [preset=...] [model=...] [phases=...] [size=...]
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.core.errors import optional
from rsna.training.optim import describe_model


def main(cfg: Config) -> None:
    for member in cfg.trained_runs:
        print(f"run {member.name}\n{describe_model(member, optional('torchinfo').summary)}")


if __name__ == "__main__":
    run(main)
