"""The recurrent student of Tang et al. 2019 (arXiv 1903.12136)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from distillery.losses.settings import Fraction, PositiveInt


class BiLSTM(nn.Module):
    """Word vectors, one bidirectional LSTM, its two last states → hidden layer (ReLU) → logits [B, num_classes].

    Only tokens that count are read, in their order, wherever the padding is: neither it nor the rest of the batch
    changes the result. A pair of texts is read as the one sequence that the tokenizer makes of it; the paper's
    siamese form for pairs is not built.

    Args:
        vocab_size: of the tokenizer.
        embedding_width: of a word vector.
        hidden: units of the LSTM in each direction, and of the hidden layer (the paper tunes the two apart).
        dropout: of the word vectors and of the hidden layer.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        num_classes: int,
        embedding_width: PositiveInt = 300,
        hidden: PositiveInt = 150,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_width)
        self.lstm = nn.LSTM(embedding_width, hidden, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **ignored: Any) -> Tensor:
        words, counts = self.counted(input_ids, attention_mask)
        packed = pack_padded_sequence(words, counts.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.classified(last)

    def counted(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The word vectors [B, L, W], those of tokens that count first, and how many of them there are, [B]."""
        counts = attention_mask.bool()
        places = torch.arange(counts.shape[1], device=counts.device)
        order = torch.where(counts, places, places + counts.shape[1]).argsort(1)  # of unique keys: as ONNX can sort
        return self.dropout(self.embedding(input_ids.gather(1, order))), counts.sum(1)

    def classified(self, last: Tensor) -> Tensor:
        """The logits from the states [2, B, hidden] in which the two directions end."""
        states = last.transpose(0, 1).flatten(1)
        return self.classifier(self.dropout(self.dense(states).relu()))
