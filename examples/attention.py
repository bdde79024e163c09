"""Sequence to sequence: a decoder that attends over an encoder, and writes digits down in order.

An encoder reads digits in both directions; its outputs are the decoder's `context`, over which the decoder's cell
attends at every step (Luong et al., 2015). Prints some strings, and how many are sorted without a fault.
"""

import sys

import torch

import elman

H, END = 64, 10  # symbols: the digits, and one that begins and ends a string


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.embedding, self.cell = H, torch.nn.Embedding(11, H), torch.nn.GRUCell(H, H)
        self.query, self.readout = torch.nn.Linear(H, H), torch.nn.Linear(2 * H, 11)

    def forward(self, x, h, context):  # x [B], h [B, H], what the encoder says [B, S, H] and where [B, S]
        (said, there), h = context, self.cell(self.embedding(x), h)
        scores = (said * self.query(h)[:, None]).sum(-1).masked_fill(~there, -1e9)
        seen = (scores.softmax(-1)[:, :, None] * said).sum(1)
        return self.readout(torch.cat([h, seen], -1)), h


def main(small: bool = False) -> None:
    torch.manual_seed(0)
    longest, updates, enough = (3, 110, 0.6) if small else (8, 1000, 0.85)
    forward, backward, decoder = elman.cells.GRU(11, 32), elman.cells.GRU(11, 32), elman.Recurrent(Decoder())
    encoder = elman.Bidirectional(forward, backward)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-3)
    while True:
        there = torch.arange(longest)[:, None] < (lengths := torch.randint(2, longest + 1, (100,)))
        digits = torch.randint(10, there.shape).where(there, END)
        said, _ = encoder(torch.nn.functional.one_hot(digits, 11).float(), lengths=lengths)
        target = torch.nn.functional.pad(digits, (0, 0, 0, 1), value=END).sort(0).values
        context = (said.transpose(0, 1), there.T)
        if (updates := updates - 1) < 0:
            break  # this batch is the test
        logits, _ = decoder(target.roll(1, 0), context=context)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    symbol, h, written = target[-1], None, []
    with torch.no_grad():
        for _ in target:  # on its own: it reads what it has written
            o, h = decoder.step(symbol, h, context=context)
            written.append(symbol := o.argmax(-1))
    right = (torch.stack(written) == target).all(0).float().mean()
    for pair in zip(digits.T[:3].tolist(), torch.stack(written, 1)[:3].tolist(), strict=True):
        print(" -> ".join("".join(str(s) for s in string if s != END) for string in pair))
    print(f"{100 * right:.1f} % of strings of up to {longest} digits are sorted without a fault")
    assert right > enough


if __name__ == "__main__":
    main("--small" in sys.argv)
