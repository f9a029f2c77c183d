"""`distill-evaluate run=<dir>`: rebuild a run's student from its folder alone and check its score, or score it anew.

`data.root=<folder>`, or any other setting of the data, scores it on other data, and `corruptions=all` on corrupted
pictures. `pictures=true` measures and draws how alike the layers of student and teacher are.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.core.errors import UserError


@hydra_main("evaluate")
def main(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.runs.compare_layers import compare_layers
        from distillery.runs.harness import harness_scores
        from distillery.runs.score_corruptions import score_corruptions
        from distillery.runs.score_other_data import score_other_data
        from distillery.runs.strided_score import strided_score
        from distillery.runs.verify_run import verify_run

    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("Which run? Name a run folder: distill-evaluate run=outputs/demo/kd/seed0")
    run = Path(str(cfg.run))
    asked = {"data.*": cfg.data, "lm_eval": cfg.lm_eval, "corruptions": cfg.corruptions, "pictures": cfg.pictures}
    given = [name for name, value in (*asked.items(), ("stride", cfg.stride is not None)) if value]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} exclude each other: leave out one of them.")
    if cfg.data:
        score_other_data(run, OmegaConf.to_container(cfg.data, resolve=True), cfg.split)  # type: ignore[arg-type]
    elif cfg.lm_eval:
        harness_scores(run, [cfg.lm_eval] if isinstance(cfg.lm_eval, str) else cfg.lm_eval, cfg.limit)
    elif cfg.corruptions:
        names = [cfg.corruptions] if isinstance(cfg.corruptions, str) else cfg.corruptions
        score_corruptions(run, names, cfg.severities)
    elif cfg.pictures:
        compare_layers(run, Path(cfg.teacher) if cfg.teacher else None)
    elif cfg.stride is not None:
        strided_score(run, cfg.stride, cfg.split)
    else:
        verify_run(run, cfg.split)


if __name__ == "__main__":
    main()
