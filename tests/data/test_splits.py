import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.data.module import Data
from distillery.data.raw_data import Split
from distillery.data.sources.fashion_mnist import DEBIAN, fashion_mnist
from distillery.data.sources.wordnet import wordnet
from distillery.data.splits import class_quotas, read_index, stratified


def test_quotas_by_the_largest_remainder() -> None:
    # Exact shares 4.7, 3.0, 1.3, 1.0: the missing one goes to the remainder .7.
    assert class_quotas(torch.tensor([47, 30, 13, 10]), 10).tolist() == [5, 3, 1, 1]


def test_a_rare_class_gets_one_from_the_largest() -> None:
    assert class_quotas(torch.tensor([98, 1, 0, 1]), 4).tolist() == [2, 1, 0, 1]


def test_class_counts_and_disjointness() -> None:
    for size in [10, 57, 100, 333]:
        targets = torch.from_numpy(np.random.default_rng(0).choice(10, 400, p=np.arange(1, 11) / 55))
        indices = torch.arange(0, 400, 1)[targets != 3]
        drawn, rest = stratified(targets, indices, size, seed=4)
        assert len(drawn) == len(set(drawn.tolist())) == size
        assert sorted(drawn.tolist() + rest.tolist()) == indices.tolist()
        counts = np.bincount(targets[indices], minlength=10)
        got = np.bincount(targets[drawn], minlength=10)
        assert got[counts > 0].min() >= 1
        if size >= 100:
            assert np.abs(got - counts * size / counts.sum()).max() < 1


def test_the_draw_depends_on_the_seed_alone() -> None:
    targets, indices = torch.arange(400) % 10, torch.arange(400)
    torch.manual_seed(1)
    first, _ = stratified(targets, indices, 100, seed=0)
    torch.manual_seed(2)
    assert torch.equal(stratified(targets, indices, 100, seed=0)[0], first)
    other = set(stratified(targets, indices, 100, seed=1)[0].tolist())
    assert 5 < len(other & set(first.tolist())) < 60


def test_impossible_sizes_are_refused() -> None:
    for size in [9, 401]:
        with pytest.raises(UserError, match=r"between 10 .* and 400"):
            stratified(torch.arange(400) % 10, torch.arange(400), size, seed=0)


def written(folder: Path, lines: object) -> Path:
    path = folder / "index.txt"
    path.write_text("\n".join(map(str, lines)), encoding="utf-8")  # type: ignore[call-overload]
    return path


def test_index_is_read_in_its_order(tmp_path: Path) -> None:
    assert read_index(written(tmp_path, [7, 3, 5]), torch.arange(10)).tolist() == [7, 3, 5]


def test_index_is_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `data.root` is: an installed package has no repository around it."""
    (tmp_path / "index.txt").write_text("7\n3\n")
    monkeypatch.chdir(tmp_path)
    assert read_index("index.txt", torch.arange(10)).tolist() == [7, 3]


def test_bad_index_is_refused(tmp_path: Path) -> None:
    for lines, message in [
        ([1, 2, 1], "lists a position twice"),
        ([1, 99], r"1 of 2 positions are not in the training split, for instance 99"),
        (["one"], "one position per line"),
    ]:
        with pytest.raises(UserError, match=message):
            read_index(written(tmp_path, lines), torch.arange(10))


def test_missing_index_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.train_index=nowhere\.txt"):
        read_index("nowhere.txt", torch.arange(10))


# SHA-256 of the positions, one a line, of the subsets with which the published figures were made.
IMAGES = (fashion_mnist, DEBIAN, "7f54666b2c9106787aad2631d243cbeeb8c7de7204cad4dc79af764298f04c97")
GLOSSES = (wordnet, Path("/usr/share/wordnet"), "e8f3bef26bd920764f026954d13a1dccc3c1941c8047fff60e5a5a4bab1df1c5")
PUBLISHED = {
    "leaderboard_fashion_mnist": IMAGES,
    "leaderboard_vit": IMAGES,
    "wordnet": GLOSSES,
    "wordnet_teacher": GLOSSES,
}


class Unserved(Data):
    """The splits alone: nothing is tokenised or checked."""

    def served(self, splits: dict[str, Split]) -> dict[str, Split]:
        return splits


@pytest.mark.slow
def test_recipes_draw_the_published_subset_whatever_the_seed() -> None:
    for recipe, (source, folder, expected) in PUBLISHED.items():
        if not folder.is_dir():
            pytest.skip(f"{folder} is not installed")
        recipe_data = OmegaConf.to_container(OmegaConf.load(CONFIGS / "experiment" / f"{recipe}.yaml").data)
        subset: Any = {key: value for key, value in recipe_data.items() if key in Data.__annotations__}
        data = Unserved(source, **subset, eval_batch_size=100, root=str(folder), val_size=5000, seed=3)
        train, val = (data.splits[part].indices for part in ("train", "val"))
        lines = "".join(f"{position}\n" for position in train.tolist())
        assert hashlib.sha256(lines.encode()).hexdigest() == expected, recipe
        assert not torch.isin(train, val).any()
