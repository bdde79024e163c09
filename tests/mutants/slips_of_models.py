"""Slips in what learns: training, the data it reads, and the models."""

from __future__ import annotations

from tests.mutants.slip import Slip

SLIPS = (
    # --- training ---
    Slip(
        "training/fit.py", 'if p.ndim <= 1], "weight_decay": 0.0}', 'if p.ndim <= 1], "weight_decay": weight_decay}',
        "biases decay", "test_training.py",
    ),
    Slip(
        "training/fit.py", 'if key in ("step", "exp_avg", "exp_avg_sq")', 'if key in ("step", "exp_avg")',
        "a restored run has forgotten its second moments", "test_survival.py test_training.py",
    ),
    Slip(
        "training/fit.py", "self.carried, self.batches.position = carried, tuple", "self.batches.position = tuple",
        "a restored run starts from a state of zeros", "test_survival.py test_training.py",
    ),
    Slip(
        "models/evaluating.py", "module.training = training", "module.training = True",
        "evaluating a model puts it into training mode", "models/test_evaluating.py",
    ),
    Slip(
        "models/evaluation.py", "if warm <= 0 else 0.0", "if warm < 0 else 0.0",
        "an estimate leaves out the first part that counts", "test_training.py",
    ),
    Slip(
        "training/checkpoint.py", 'whole = _digest(tensors, metadata["facts"]) == metadata["digest"]', "whole = True",
        "a checkpoint whose numbers were changed is taken", "test_survival.py",
    ),
    # --- data ---
    Slip(
        "data/windows.py", "if after + self.window <= length else (turn + 1, 0)",
        "if after + self.window < length else (turn + 1, 0)", "the last whole window of the lanes is left out",
        "test_data.py",
    ),
    Slip(
        "data/windows.py", "fresh = t == 0 or", "fresh =",
        "a new pass over the text goes on from the state at its end", "test_data.py",
    ),
    Slip(
        "data/schema.py", "right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most",
        "right = isinstance(value, int) and least <= value <= most", "true counts as a number in a file",
        "test_strangers.py test_data.py",
    ),
    Slip(
        "data/cache.py", "_name('tokenizer', kind, vocabulary, text.digest)",
        "_name('tokenizer', kind, vocabulary, '')", "a tokenizer of another text is taken from the cache",
        "test_text.py test_text_symbols.py",
    ),
    # --- models ---
    Slip(
        "models/readout.py", "g *= scale\n", "pass\n", "the gradient of the loss is that of the sum",
        "models/test_readout.py",
    ),
    Slip(
        "models/readout.py", "sorted_dh[rows] += own", "pass", "what a group says of h is lost",
        "models/test_readout.py",
    ),
    Slip(
        "models/surprisal.py", "self.word.add(rest, max(bits - part, 0.0), unknown)",
        "self.word.add(rest, bits, unknown)", "the blank in front of a byte pair counts to its word",
        "models/test_surprisal.py",
    ),
    Slip(
        "models/sampler.py", "scores = torch.where(_above(scores, torch.ones_like(scores)) < self.top_k",
        "scores = torch.where(_above(scores, torch.ones_like(scores)) <= self.top_k", "top_k keeps one symbol more",
        "models/test_sampler.py",
    ),
)  # fmt: skip
