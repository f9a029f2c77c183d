"""Names of timm's networks are refused before anything is built, with the nearest right ones."""

import pytest

from distillery.core.errors import UserError
from distillery.models.timm_names import check_timm


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "tf_efficientnet_lite0", "hf-hub:user/network"])
def test_known(name: str) -> None:
    check_timm(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnett18", "timm has no network 'resnett18'. Did you mean .*'resnet18'"),
        ("resnett18.a1_in1k", "timm has no network 'resnett18'"),
        ("resnet18.a1_in1", "timm's resnet18 has no weights 'a1_in1'. Did you mean .*'a1_in1k'"),
        ("", "timm has no network ''"),
    ],
)
def test_unknown(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_timm(name)
