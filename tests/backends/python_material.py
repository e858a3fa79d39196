"""Python files of models, as a user writes them, and rows for them."""

from __future__ import annotations

import numpy as np

from fairlead.core.dataset import Dataset

WORDS = """
def length(text):
    return len(text)
"""

MODELS = '''
import asyncio
import threading
import time

import numpy as np

from words import length


class Shout:
    """Reads a file, and answers with text and a number."""

    def load(self, context):
        self.suffix = (context / "suffix.txt").read_text().strip()

    def predict(self, inputs):
        texts = inputs["text"]
        loud = np.array([text.upper() + self.suffix for text in texts], object)
        return {"loud": loud, "size": np.array([length(text) for text in texts])}


class Pieces:
    inputs = {"text": "string[?]"}

    def predict(self, inputs):
        for number in range(3):
            yield {"word": np.array([f"{text[:1]}{number} " for text in inputs["text"]], object)}


class LaterPieces:
    inputs = {"text": "string[?]"}

    async def predict(self, inputs):
        for number in range(2):
            await asyncio.sleep(0)
            yield {"ids": np.full((len(inputs["text"]), 2), number)}


class Later:
    inputs = {"text": "string"}

    async def predict(self, inputs):
        await asyncio.sleep(0)
        return np.array([len(text) for text in inputs["text"]])


class Picky:
    def predict(self, inputs):
        if "bad" in inputs["text"]:
            raise ValueError("`bad` is no word")
        if "broken" in inputs["text"]:
            raise KeyError("/secret/path")
        return {"size": np.array([len(text) for text in inputs["text"]])}


class Alone:
    """Notices when two threads are in it."""

    def load(self):
        self.inside = 0
        self.most = 0

    def predict(self, inputs):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.002)
        self.inside -= 1
        return {"most": np.full(len(inputs["text"]), self.most)}


class Together(Alone):
    thread_safe = True
    barrier = None

    def predict(self, inputs):
        if len(inputs["text"]) != 5:
            return {"most": np.zeros(len(inputs["text"]), np.int64)}
        self.met.wait(10)
        return {"most": np.full(5, 2)}

    def load(self):
        self.met = threading.Barrier(2)


class Tokeniser:
    inputs = {"text": "string[?]"}

    def predict(self, inputs):
        rows = [[sum(map(ord, word)) % 99 + 1 for word in text.split()] for text in inputs["text"]]
        longest = max(map(len, rows))
        return {"ids": np.array([row + [0] * (longest - len(row)) for row in rows], np.int64)}


def halves(columns):
    return {"a": columns["left"] / 2, "b": columns["right"] / 2,
            "c": columns["left"], "d": columns["right"]}


def named(outputs):
    return {"kind": np.array(["xyz"[i] for i in outputs["label"]], object),
            "scores": outputs["scores"]}
'''


def write_code(folder):
    """Put the files of the models into a folder."""
    (folder / "models.py").write_text(MODELS)
    (folder / "words.py").write_text(WORDS)
    (folder / "suffix.txt").write_text("!\n")
    return folder / "models.py"


def texts(n_rows=20):
    words = ["one", "two words", "and three words"]
    return Dataset({"text": np.array([words[i % 3] for i in range(n_rows)], object)})
