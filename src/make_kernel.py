"""Build what is needed to run this project on Kaggle: a dataset (code, wheels, trained folds) and two notebooks.

    python src/make_kernel.py name=<run> user=<your Kaggle name> [fold=0..4] [wheels=<folder>] [push=true]

Writes working/<name>/kaggle/{dataset,inference,training}/ and prints the commands that upload and submit; push=true
runs them. Takes the same settings as train. If the run is not trained yet, there is only the training kernel.
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.kaggle.client import upload_and_submit
from rsna.kaggle.kernels import plan_bundle, print_bundle, print_commands, write_bundle


def main(cfg: Config) -> None:
    bundle = plan_bundle(cfg)
    write_bundle(bundle)
    print_bundle(bundle)
    print_commands(bundle)
    if cfg.push:
        upload_and_submit(bundle.upload)


if __name__ == "__main__":
    run(main)
