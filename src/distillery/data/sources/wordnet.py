"""The glosses of WordNet, from its database files."""

import re
from pathlib import Path

import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sources.duplicates import distinct

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
# The lexicographer files in the order of their numbers: WordNet's manual page lexnames(5WN).
CLASSES = tuple(
    """
    adj.all adj.pert adv.all
    noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition noun.communication noun.event
    noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant
    noun.possession noun.process noun.quantity noun.relation noun.shape noun.state noun.substance noun.time
    verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact
    verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather
    adj.ppl
    """.split()
)
SENSE = re.compile(r"\d{8} (\d\d) [nvasr] .*? \| (.*\S)\s*")  # offset, class, type, words and links, gloss
TEST_SIZE = 10_000


def wordnet(root: str | Path = "/usr/share/wordnet") -> RawData:
    """117,659 glosses (definition and examples of a sense) in 45 classes, from plants to verbs of motion.

    Source: Miller 1995, "WordNet: A Lexical Database for English", version 3.0; `root` has its files data.noun,
    data.verb, data.adj and data.adv. The classes are the files in which the lexicographers wrote the senses; the
    largest has 14,417, the smallest 42. Test split: 10,000, drawn by class and always the same. Repeated
    glosses, and those of more than one class, are left out first and counted in the remarks; an index is a
    position among the glosses that remain, in the order nouns, verbs, adjectives, adverbs.

    Raises:
        UserError: a file is missing or has another format.
    """
    glosses: list[str] = []
    labels: list[int] = []
    for name in FILES:
        _read(Path(root) / name, glosses, labels)
    unique = distinct(glosses, labels)
    texts = Texts([glosses[position] for position in unique.kept])
    targets = torch.tensor([labels[position] for position in unique.kept], dtype=torch.int64)
    test, train = Split.whole(texts, targets).divided(TEST_SIZE)
    remark = f"{len(glosses):,} glosses; {unique.remark()}"
    return RawData("wordnet", CLASSES, train=train, test=test, remarks=(remark,))


def _read(path: Path, glosses: list[str], labels: list[int]) -> None:
    """Append the glosses and labels of `path`, one sense per line; the lines of the licence are indented."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{path}' cannot be read: {error}. Install Debian's package wordnet-base, or set data.root to "
            f"the folder with {', '.join(FILES)}."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.startswith("  "):
            continue
        sense = SENSE.fullmatch(line)
        if sense is None or int(sense[1]) >= len(CLASSES):
            raise UserError(f"'{path}', line {number}: not a sense of WordNet: {line[:60]!r}. Fetch the file again.")
        glosses.append(sense[2])
        labels.append(int(sense[1]))
