"""A language model of characters on a text of one's own.

    python examples/own_text.py book.txt

Without a file the text is made here, of sentences such as "the old dog sees a cat." Prints bits per character of
held-out text, beside those of a model that counts single characters, and what the model writes. Of the text made here
it also says how many of the written sentences are right.
"""

import random
import re
import sys

import torch

from elman.data import Tokenizer, windows
from elman.data.text import read_text
from elman.models import LanguageModel, evaluate
from elman.training import Training

WHO, VERB = ["the", "a"], ["sees", "hears", "follows"]
SENTENCE = r"(the|a)( old| small| red)? (dog|cat|bird) (sees|hears|follows) (the|a) (dog|cat|bird)\."


def made(sentences: int) -> str:
    draw = random.Random(0)
    noun, adjective = ["dog", "cat", "bird"], ["old", "small", "red"]
    orders = [[WHO, adjective, noun, VERB, WHO, noun], [WHO, noun, VERB, WHO, noun]]
    return " ".join(" ".join(map(draw.choice, draw.choice(orders))) + "." for _ in range(sentences))


def main(small: bool = False, file: str | None = None) -> None:
    torch.manual_seed(0)
    text = read_text(file) if file else made(3000)
    tokenizer = Tokenizer.characters(text)
    tokens = tokenizer.encode(text)
    train, held_out = tokens[: -len(tokens) // 10], tokens[-len(tokens) // 10 :][:20_000]

    model = LanguageModel(tokenizer.size, "gru", hidden=64 if small else 128, embedding=16)
    for step in Training(model, windows(train, 64, 16), steps=150 if small else 500, warmup=10, lr=1e-2):
        if step.step % 50 == 0:
            print(f"step {step.step}: {step.loss / 0.6931:.2f} bits per character in training")

    bits = evaluate(model, held_out).bits_per_symbol
    counts = torch.bincount(train, minlength=tokenizer.size) + 1
    single = -(counts / counts.sum()).log2()[held_out].mean().item()
    print(f"held out: {bits:.2f} bits per character; by single characters {single:.2f}")
    written = tokenizer.decode(model.generate(tokenizer.encode(text[:50]), 1000, temperature=0.7, seed=0))
    print(written[:200])
    assert bits < 0.7 * single
    if not file:
        sentences = re.findall(r"[^.]+\.", written)[1:]
        right = sum(re.fullmatch(SENTENCE, one.strip()) is not None for one in sentences) / len(sentences)
        print(f"{100 * right:.0f} % of the {len(sentences)} sentences written are right")
        assert right > 0.8


if __name__ == "__main__":
    main("--small" in sys.argv, *[name for name in sys.argv[1:] if name != "--small"])
