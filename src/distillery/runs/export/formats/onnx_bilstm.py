"""The recurrent student as a graph: ONNX has an operator for packed sequences, which no tracer follows."""

import torch
from torch import Tensor, nn

from distillery.models.text.bilstm import BiLSTM


class BiLSTMGraph(nn.Module):
    """`BiLSTM` with ONNX's LSTM, which reads as many tokens of each text as count."""

    def __init__(self, net: BiLSTM) -> None:
        super().__init__()
        self.net = net.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        net, lstm = self.net, self.net.lstm
        words, counts = net.counted(input_ids, attention_mask)
        words = words.transpose(0, 1)
        length, batch, _ = words.shape
        weights = [self._both(name) for name in ("weight_ih", "weight_hh")]
        bias = torch.cat([self._both("bias_ih"), self._both("bias_hh")], 1)
        hidden = lstm.hidden_size
        _, last, _ = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (words, *weights, bias, counts.to(torch.int32)),
            {"hidden_size": hidden, "direction": "bidirectional"},
            dtypes=(torch.float32,) * 3,
            shapes=((length, 2, batch, hidden), (2, batch, hidden), (2, batch, hidden)),
            version=14,
        )
        return net.classified(last)

    def _both(self, name: str) -> Tensor:
        """The parameters of both directions, with the gates in ONNX's order: input, output, forget, cell."""
        of_directions = []
        for end in ("_l0", "_l0_reverse"):
            enters, forgets, cell, leaves = getattr(self.net.lstm, name + end).chunk(4)
            of_directions.append(torch.cat([enters, leaves, forgets, cell]))
        return torch.stack(of_directions)
