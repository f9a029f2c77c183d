"""`data/augment`: a choice replaces the options of the data set and of the recipe."""

import pytest
import yaml
from omegaconf import OmegaConf

from distillery.core.paths import CONFIGS
from distillery.data.augmentation import augment_options
from fixtures.composing import train_config

ENTRIES = sorted(path.stem for path in (CONFIGS / "data" / "augment").glob("*.yaml"))
IMAGES = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml") if "VisionData" in path.read_text())


def augment(*overrides: str) -> object:
    return OmegaConf.to_container(train_config(*overrides)).get("data", {}).get("augment")  # type: ignore[union-attr]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_choice_replaces_every_other(entry: str) -> None:
    own = yaml.safe_load((CONFIGS / "data" / "augment" / f"{entry}.yaml").read_text(encoding="utf-8"))
    expected = None if entry == "none" else own
    for others in ("data=image_folder", "experiment=fashion_mnist"):
        assert augment(others, f"data/augment={entry}") == expected
    if expected:
        augment_options(expected)


def test_every_data_set_of_images_has_a_default() -> None:
    assert {name: augment(f"data={name}") for name in IMAGES} == {
        "cifar10": {"crop": 4, "flip": True},
        "cifar100": {"crop": 4, "flip": True},
        "digits": {"crop": 1, "flip": False},
        "fashion_mnist": {"crop": 4, "flip": True},
        "fashion_mnist_masks": {"crop": 4, "flip": True},
        "hf_images": {"resized_crop": [0.08, 1.0], "flip": True},
        "image_folder": {"resized_crop": [0.08, 1.0], "flip": True},
        "image_labels": {"resized_crop": [0.08, 1.0], "flip": True},
        "mask_folder": {"resized_crop": [0.25, 1.0], "flip": True},
    }


def test_single_options_are_set_in_what_is_chosen() -> None:
    assert augment("experiment=fashion_mnist") == {"crop": 2, "flip": True}
    assert augment("experiment=fashion_mnist", "data.augment.crop=3") == {"crop": 3, "flip": True}
    assert augment("experiment=fashion_mnist", "data.augment=null") is None
    assert augment("experiment=fashion_mnist", "data/augment=patient", "data.augment.mixup=0.2") == {
        "resized_crop": [0.05, 1.0],
        "flip": True,
        "mixup": 0.2,
    }
