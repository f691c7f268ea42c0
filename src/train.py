"""Train the folds that are asked for, each into working/<name>/fold<k>/.

python src/train.py fold=0..4 [name=...] [size=...] [epochs=...] [weights=...]
"""

from config import Config, load_config
from engine import train_fold


def main(cfg: Config) -> None:
    for fold in cfg.fold_list:
        train_fold(cfg, fold)


if __name__ == "__main__":
    main(load_config())
