"""Networks whose logits are maps: sizes, taps on their head, classes in another order."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distillery.core.errors import UserError
from distillery.models.fcn import SmallFCN
from distillery.models.hf_segmentation import hf_segmentation
from distillery.models.taps.network import Network
from distillery.teachers.frozen import Teacher

SEGFORMER = {
    "hidden_sizes": [4, 6, 8, 8],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8,
}
BATCH = {"image": torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))}


def segformer() -> nn.Module:
    torch.manual_seed(0)
    return hf_segmentation("segformer", num_classes=5, config=SEGFORMER).eval()


def test_the_small_network_has_stages_and_logits_of_the_image_size() -> None:
    net = SmallFCN(5, widths=(4, 6), width=8).eval()
    network = Network(net)
    found = network.tap(["stages.0", "stages.1", "embedding", "head"], BATCH)
    assert [*found.values()] == [(2, 4, 32, 48), (2, 6, 16, 24), (2, 8, 32, 48), (2, 5, 32, 48)]
    signals = network(BATCH)
    assert torch.equal(signals.logits, net(BATCH["image"]).movedim(1, -1))
    assert torch.equal(signals.layers["head"].movedim(1, -1), signals.logits)
    convolutions, norms, joined = 4 * 3 * 9 + 6 * 4 * 9, 2 * 4 + 2 * 6, (4 * 8 + 8) + (6 * 8 + 8)
    assert sum(each.numel() for each in net.parameters()) == convolutions + norms + joined + 8 * 5 + 5


def test_a_network_of_transformers_gives_logits_of_a_quarter_of_the_size(tmp_path: Path) -> None:
    net = segformer()
    network = Network(net)
    assert network.shapes(BATCH).logits == (2, 8, 12, 5)
    assert network.head(BATCH) == "decode_head.classifier"
    net.save_pretrained(tmp_path)
    again = hf_segmentation(str(tmp_path), pretrained=True).eval()
    assert again.new_weights == []
    assert torch.equal(again(BATCH["image"]).logits, net(BATCH["image"]).logits)
    other = hf_segmentation(str(tmp_path), num_classes=3, pretrained=True)
    assert other.new_weights == ["decode_head.classifier.weight", "decode_head.classifier.bias"]
    with pytest.raises(UserError, match=r"'vit' is a 'vit', which cannot segment.*segformer"):
        hf_segmentation("vit", num_classes=3)
    with pytest.raises(UserError, match="is a model type, which has no weights"):
        hf_segmentation("segformer", pretrained=True)


@pytest.mark.parametrize("make", [lambda: SmallFCN(5, widths=(4, 6), width=8), segformer])
def test_the_classes_of_a_teacher_are_put_in_another_order(make: type[nn.Module]) -> None:
    teacher = Teacher(make())
    before = teacher(BATCH).logits
    teacher.choose_classes([3, 0, 4], BATCH)
    assert torch.allclose(teacher(BATCH).logits, before[..., [3, 0, 4]], atol=1e-6)
    assert teacher.tap(["head"], BATCH)["head"][1] == 3
    teacher.reset("again")
    assert torch.equal(teacher(BATCH).logits, before)
