"""Sentences of film reviews as files, for studies of what a model writes: `python scripts/movie_review_files.py`.

In outputs/generated: `texts.jsonl` (1,000 training sentences), `few.jsonl` (100 of them), `more_texts.jsonl` (these
1,000 and 3,000 others), `val.jsonl` (500 training sentences that are in no other file) and `test.jsonl` (the 1,000
test sentences), each with its label.
"""

import json
import os
from pathlib import Path

from distillery.data.raw_data import Split
from distillery.data.sources.movie_reviews import movie_reviews


def main() -> None:
    """Each file of training sentences is a stratified part of the larger ones."""
    out = Path(os.environ.get("DISTILLERY_OUTPUTS", "outputs")) / "generated"
    out.mkdir(parents=True, exist_ok=True)
    raw = movie_reviews()
    texts, others = raw.train.divided(1000)
    few, _ = texts.divided(100)
    more, others = others.divided(3000)
    val, _ = others.divided(500)
    files = {"few": [few], "texts": [texts], "more_texts": [texts, more], "val": [val], "test": [raw.test]}
    for name, splits in files.items():
        rows = [row for split in splits for row in _rows(split, raw.classes)]
        path = out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows):,} texts")


def _rows(split: Split, classes: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        {"text": split.inputs.first[position], "label": classes[split.targets[position]]}
        for position in split.indices.tolist()
    ]


if __name__ == "__main__":
    main()
