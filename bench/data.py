"""Bytes that contexts and bases are made of: noise that no compressor shrinks, and text that gzip shrinks to about 40 %. The same
seed gives the same bytes everywhere."""
import itertools
import random

WORDS = 20000


def noise(size, seed):
    """Incompressible bytes."""
    return random.Random("noise-%s" % seed).randbytes(size)


def text(size, seed):
    """Lines of made-up words, some far more frequent than others, as in source code and prose."""
    random_ = random.Random("text-%s" % seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (n + 2) for n in range(len(letters))]
    words = ["".join(random_.choices(letters, weights, k=random_.randint(2, 11))) for _ in range(WORDS)]
    frequency = [1 / (n + 20) for n in range(WORDS)]
    frequency = list(itertools.accumulate(frequency))
    pieces, length = [], 0
    while length < size:
        chosen = random_.choices(words, cum_weights=frequency, k=120000)
        piece = "".join("%s\n" % " ".join(chosen[n:n + 12]) for n in range(0, len(chosen), 12))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces).encode("ascii")[:size]


class Slices:
    """Files of any size, cut from one piece of text at places that differ; quick where there are many."""

    def __init__(self, seed, size=8 << 20):
        self.pool, self.random = text(size, seed), random.Random("slices-%s" % seed)

    def between(self, least, most):
        """The content of a file of `least` to `most` bytes."""
        size = self.random.randint(least, most)
        start = self.random.randrange(len(self.pool) - size)
        return self.pool[start:start + size]
