"""`distill-predict run=<dir> <files>`: what a run's student predicts for what has no labels."""

import re
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.core.errors import UserError

SETTING = re.compile(r"-|[+~]*[A-Za-z_][\w./@]*=")  # how what is for Hydra begins; a file of such a name: ./a=b.png


def main() -> None:
    """Hydra takes no words but settings: the others are the files."""
    files = [word for word in sys.argv[1:] if not SETTING.match(word)]
    sys.argv[1:] = [word for word in sys.argv[1:] if SETTING.match(word)]

    @hydra_main("predict")
    def predict(cfg: DictConfig) -> None:
        with heavy_imports():
            from distillery.runs.predict import predict_files

        if OmegaConf.is_missing(cfg, "run"):
            raise UserError("Which run? Name a run folder: distill-predict run=outputs/pictures/kd/seed0 new/*.jpg")
        out = None if cfg.out is None else Path(str(cfg.out))
        if predict_files(Path(str(cfg.run)), files, out, cfg.top):
            sys.exit(1)

    predict()


if __name__ == "__main__":
    main()
