"""Scores against scikit-learn and NumPy; and that scoring leaves no trace in a network."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.tasks.classification import Classification
from distillery.tasks.evaluate import evaluate

CLASSES, SAMPLES = 4, 23


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    net = Network(SmallCNN(CLASSES, 1, (4, 6)), ImageAdapter([0.5], [0.25]), name="student")
    for _ in range(3):  # running statistics unlike those of a batch
        net({"image": torch.rand(16, 1, 8, 8)})
    return net


@pytest.fixture
def samples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(SAMPLES, 1, 8, 8, generator=generator) ** 3,
        "target": torch.randint(CLASSES, (SAMPLES,), generator=generator),
        "index": torch.randperm(100, generator=generator)[:SAMPLES],
    }


def loader(samples: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    return [{key: values[i : i + size] for key, values in samples.items()} for i in range(0, SAMPLES, size)]


def expected(network: Network, samples: dict[str, Tensor], smoothing: float) -> tuple[np.ndarray, float]:
    """Predictions and mean cross-entropy of the whole split at once, in float64."""
    modes = network.training
    logits = network.eval()(samples).logits.detach().double().numpy()
    network.train(modes)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(CLASSES)[samples["target"].numpy()] + smoothing / CLASSES
    return logits.argmax(1), float(-(wanted * log_p).sum(1).mean())


@pytest.mark.parametrize("size", [1, 5, 22, 23, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_score_and_loss_are_those_of_each_sample_once(
    size: int, smoothing: float, network: Network, samples: dict[str, Tensor]
) -> None:
    predicted, loss = expected(network, samples, smoothing)
    found = evaluate(network, loader(samples, size), Classification(label_smoothing=smoothing), CLASSES)
    score = accuracy_score(samples["target"].numpy(), predicted)
    assert 0 < score < 1
    assert found.score == pytest.approx(score, abs=1e-7)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.predicted.tolist() == predicted.tolist()
    assert torch.equal(found.target, samples["target"])
    assert torch.equal(found.index, samples["index"])


def test_the_score_is_of_samples_not_of_classes(samples: dict[str, Tensor], network: Network) -> None:
    """The mean of each class's own accuracy would be another number on unbalanced data."""
    predicted, _ = expected(network, samples, 0.0)
    counts = np.bincount(predicted, minlength=CLASSES)
    frequent = int(counts.argmax())
    samples["target"] = torch.where(torch.arange(SAMPLES) < 18, frequent, (frequent + 1) % CLASSES)
    found = evaluate(network, loader(samples, 5), Classification(), CLASSES)
    target = samples["target"].numpy()
    of_classes = np.mean([(predicted[target == name] == name).mean() for name in np.unique(target)])
    assert found.score == pytest.approx(accuracy_score(target, predicted))
    assert abs(found.score - of_classes) > 0.01


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, target = torch.tensor([[9.0, 0.0]], dtype=torch.float16), torch.tensor([0])
    found = Classification().loss(logits, target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(np.log1p(np.exp(-9)), rel=1e-3)  # 0.00012; float16 gives 0 or 0.000122


def mixed(network: Network) -> list[bool]:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    return modes


def test_modes_and_statistics_are_as_they_were(network: Network, samples: dict[str, Tensor]) -> None:
    modes, state = mixed(network), {key: value.clone() for key, value in network.state_dict().items()}
    evaluate(network, loader(samples, 5), Classification(), CLASSES)
    assert [module.training for module in network.modules()] == modes
    assert torch.is_grad_enabled()
    network.train()
    evaluate(network, loader(samples, 5), Classification(), CLASSES)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_modes_are_restored_after_an_error(network: Network, samples: dict[str, Tensor]) -> None:
    def breaks() -> Iterator[dict[str, Tensor]]:
        yield from loader(samples, 5)[:2]
        raise OSError("a torn file")

    modes = mixed(network)
    with pytest.raises(OSError, match="a torn file"):
        evaluate(network, breaks(), Classification(), CLASSES)
    assert [module.training for module in network.modules()] == modes
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_a_large_vocabulary_takes_the_memory_of_one_chunk() -> None:
    """And generation that of one token; also where the C library keeps memory: small results must not break it up."""
    script = """
import torch
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.evaluate import evaluate
from distillery.training.head_chunks import end_before_heads
from distillery.training.rollouts import Rollouts
from fixtures.documents import tiny_llama
from fixtures.own_texts import prompts

def peak():  # MiB
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

def batch(rows):
    ids = torch.randint(49_152, (rows, 64))
    ones = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "target": ids, "bytes": ones, "index": torch.arange(rows)}

net = tiny_llama(49_152)
network = Network(net, TextAdapter(net))
for new_tokens in (2, 48):
    before = peak()
    Rollouts(new_tokens=new_tokens).draw(net, [prompts(*[3] * 16, vocabulary=49_152)], 0)
print(peak() - before)
end_before_heads(CausalLM(), {}, network, {}, batch(2))
evaluate(network, [batch(2)], CausalLM(), 49_152)
before = peak()
evaluate(network, [batch(32) for _ in range(3)], CausalLM(), 49_152)
print(peak() - before)
"""
    keeping = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**33)}
    environment = os.environ | keeping | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    generating, scoring = map(float, done.stdout.split())
    assert generating < 50
    assert scoring < 500
