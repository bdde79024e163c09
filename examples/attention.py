"""Sequence to sequence: a decoder that attends over an encoder, and writes digits down in order.

An encoder reads a string of digits in both directions. Its outputs are the decoder's `context`, the same at every step:
the decoder's cell looks at all of them with its state (Luong et al., 2015). "31415" is to give "11345". Prints some
strings, and how many the decoder sorts without a fault, reading what it wrote itself.
"""

import sys

import torch
from torch import nn

import elman

H, END = 64, 10  # symbols: the digits, and one that begins and ends a string


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.embedding, self.cell = H, nn.Embedding(11, H), nn.GRUCell(H, H)
        self.query, self.readout = nn.Linear(H, H), nn.Linear(2 * H, 11)

    def forward(self, x, h, context):  # x [B], h [B, H], what the encoder says [B, S, H] and where [B, S]
        said, there = context
        h = self.cell(self.embedding(x), h)
        scores = (said * self.query(h)[:, None]).sum(-1).masked_fill(~there, -1e9)
        seen = (torch.softmax(scores, -1)[:, :, None] * said).sum(1)
        return self.readout(torch.cat([h, seen], -1)), h


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    longest, updates, enough = (4, 250, 0.6) if small else (10, 1500, 0.9)
    embedding, decoder = nn.Embedding(11, H), elman.Recurrent(Decoder())
    encoder = elman.Bidirectional(elman.cells.GRU(H, H // 2), elman.cells.GRU(H, H // 2))
    optimizer = torch.optim.Adam(nn.ModuleList([embedding, encoder, decoder]).parameters(), lr=5e-3)

    def batch_of(batch):
        lengths = torch.randint(2, longest + 1, (batch,))
        there = torch.arange(longest)[:, None] < lengths
        digits = torch.randint(10, (longest, batch)).where(there, END)
        outputs, _ = encoder(embedding(digits), lengths=lengths)
        target = torch.cat([digits.sort(0).values, torch.full((1, batch), END)])
        return digits, target, (outputs.transpose(0, 1), there.T)

    for _ in range(updates):
        _, target, context = batch_of(64)
        late = torch.cat([target[-1:], target[:-1]])
        logits, _ = decoder(late, context=context)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    digits, target, context = batch_of(500)
    symbol, h, written = target[-1], None, []
    with torch.no_grad():
        for _ in target:
            o, h = decoder.step(symbol, h, context=context)
            written.append(symbol := o.argmax(-1))
    right = (torch.stack(written) == target).all(0).float().mean().item()
    for pair in zip(digits.T[:3].tolist(), torch.stack(written, 1)[:3].tolist(), strict=True):
        print(" -> ".join("".join(str(s) for s in string if s != END) for string in pair))
    print(f"{right:.1%} of strings of up to {longest} digits are sorted without a fault")
    assert right > enough


if __name__ == "__main__":
    main("--small" in sys.argv)
