"""Whole documents in splits: read one after another, so that sets larger than memory can be."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sources.table_splits import cut
from distillery.data.stored_texts import stored


class Document(NamedTuple):
    """A document, or why there is none."""

    text: str
    left_out: str = ""  # the reason, as it stands in the remark; empty: it is used


def document_data(
    name: str,
    parts: Mapping[str, Iterable[Document]],
    test_fraction: float,
    notes: Sequence[str] = (),
    noun: str = "texts",
    conversations: bool = False,
) -> RawData:
    """The splits of documents without labels, disjoint and without repeated ones; what is left out is counted.

    Documents of val that are also in test are left out, and those of train that are also in val or test. Without test,
    `test_fraction` of train becomes the test split, always the same documents.

    Args:
        parts: the documents of train, val and test; only train is required. They are read once.
        notes: remarks on how they were read.
        noun: what the documents are called in remarks.
        conversations: see `Texts`.

    Raises:
        UserError: a split has no document, or the fraction leaves none.
    """
    remarks = dict[str, list[str]]()
    splits = dict[str, Split]()
    held = dict[str, set[bytes]]()
    for part in (part for part in ("test", "val", "train") if part in parts):
        own, counts = set[bytes](), dict[str, int]()

        def distinct(part: str = part, own: set[bytes] = own, counts: dict[str, int] = counts) -> Iterable[str]:
            for text, reason in parts[part]:
                digest = blake2b(text.encode(), digest_size=16).digest()
                if not reason and digest in own:
                    reason = f"repeated {noun}"
                own.add(digest)
                others = (other for other in held if digest in held[other])
                if not reason and (other := next(others, None)) is not None:
                    reason = f"{noun} that are also in {other}"
                if reason:
                    counts[reason] = counts.get(reason, 0) + 1
                else:
                    yield text

        texts = Texts(stored(distinct()), conversations=conversations)
        held[part] = own
        remarks[part] = [f"{part}: {count:,} {reason} left out" for reason, count in counts.items()]
        if not len(texts):
            why = "".join(f" {remark}." for own in remarks.values() for remark in own)
            raise UserError(f"'{name}' has no {noun} left for the {part} split.{why}")
        splits[part] = Split.whole(texts, torch.zeros(len(texts), dtype=torch.int64))
    said = [*notes, *(remark for part in parts for remark in remarks[part])]
    if "test" not in splits:
        splits["train"], splits["test"] = cut(splits["train"], test_fraction)
        said.append(f"test: {len(splits['test'].indices):,} {noun} drawn from train, always the same ones")
    return RawData(name, (), splits["train"], splits["test"], splits.get("val"), tuple(said))
