"""Sentences of film reviews as files, for study=model_labels: `python scripts/movie_review_files.py`.

In outputs/generated: `few.jsonl` (100 training sentences), `texts.jsonl` (1,000, these among them) and `test.jsonl`
(the 1,000 test sentences), each with its label.
"""

import json
import os
from pathlib import Path

from distillery.data.raw_data import Split
from distillery.data.sources.movie_reviews import movie_reviews

SIZES = {"texts": 1000, "few": 100}


def main() -> None:
    """Each file is a stratified part of the one before."""
    out = Path(os.environ.get("DISTILLERY_OUTPUTS", "outputs")) / "generated"
    out.mkdir(parents=True, exist_ok=True)
    raw = movie_reviews()
    _write(out / "test.jsonl", raw.test, raw.classes)
    part = raw.train
    for name, size in SIZES.items():
        part, _ = part.divided(size)
        _write(out / f"{name}.jsonl", part, raw.classes)


def _write(path: Path, split: Split, classes: tuple[str, ...]) -> None:
    rows = ({"text": split.inputs.first[at], "label": classes[split.targets[at]]} for at in split.indices.tolist())
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(split.indices):,} texts")


if __name__ == "__main__":
    main()
