"""Make a synthetic competition in Kaggle's layout, with phantoms instead of patients, for demos and tests.

python src/make_demo.py root=<new folder> [demo_train=300] [demo_test=80] [shift=true] [seed=42]
"""

from rsna.startup import run
from rsna.core.config import Config
from rsna.synthetic.demo import make_demo


def main(cfg: Config) -> None:
    print(make_demo(cfg))


if __name__ == "__main__":
    run(main)
