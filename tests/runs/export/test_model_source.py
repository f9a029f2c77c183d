"""`model.py`: the generated source runs without the package and computes what the network does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from distillery.models.weights import save_weights
from distillery.runs.export.model_source import NotPlain, model_source

SIMKD = {
    "_target_": "distillery.models.simkd.SimKD",
    "num_classes": 5,
    "backbone": {"_target_": "distillery.models.cnn.SmallCNN", "_partial_": True, "widths": [4, 8]},
    "features": "stages.1",
    "head": "head",
    "width": 8,
    "teacher_width": 12,
}
NETWORKS: list[dict[str, Any]] = [
    {"_target_": "distillery.models.cnn.SmallCNN", "num_classes": 5, "widths": [4, 8], "norm": "group"},
    {"_target_": "distillery.models.fcn.SmallFCN", "num_classes": 5, "widths": [4, 8], "width": 4},
    SIMKD,
    {**SIMKD, "backbone": {"_target_": "timm.create_model", "_partial_": True, "model_name": "resnet10t"}}
    | {"features": "layer4", "head": "fc", "width": 512},
    {"_target_": "distillery.models.cifar.create", "name": "resnet8x4", "num_classes": 5},
    {"_target_": "torchvision.models.squeezenet1_1", "num_classes": 5},
]
BLOCKED = """
import runpy, sys
from pathlib import Path
sys.modules["distillery"] = None
import torch
for folder in sys.argv[1:]:
    load = runpy.run_path(f"{folder}/model.py")["load"]
    with torch.no_grad():
        torch.save(load(Path(folder))(torch.load(f"{folder}/image.pt")), f"{folder}/logits.pt")
"""


@pytest.mark.slow
def test_a_process_without_the_package_gives_the_same_logits(tmp_path: Path) -> None:
    expected = {}
    for number, settings in enumerate(NETWORKS):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.manual_seed(number)
        net = instantiate(settings).eval()
        image = torch.rand(2, 3, 64, 64)
        torch.save(image, folder / "image.pt")
        save_weights(net, folder / "model.safetensors")
        (folder / "model.py").write_text(model_source(settings), encoding="utf-8")
        with torch.no_grad():
            expected[folder] = net(image)
    subprocess.run([sys.executable, "-c", BLOCKED, *map(str, expected)], check=True)
    for folder, logits in expected.items():
        torch.testing.assert_close(torch.load(folder / "logits.pt"), logits, rtol=1e-5, atol=1e-5)
        assert logits.std() > 0, "a constant would equal itself"


def test_what_it_is_made_of_and_nothing_else() -> None:
    source = model_source(NETWORKS[0])
    assert "import distillery" not in source
    assert "from distillery" not in source
    assert "return SmallCNN(num_classes=5, widths=[4, 8], norm='group')" in source
    assert "class SmallFCN" not in source
    compile(source, "model.py", "exec")


def test_a_network_of_more_than_definitions_needs_the_package() -> None:
    with pytest.raises(NotPlain, match=r"distillery\.core\.hub"):
        model_source({"_target_": "distillery.models.hf_vision.hf_vision", "model": "vit", "num_classes": 5})
