"""CPU time of the router: to start, and per answer with and without the encoder.

    python benchmarks/router/speed.py

The texts are the held-back utterances. Those that the lexicon understands to the last word are
answered without the encoder.
"""

from __future__ import annotations

import time

import numpy as np

from fairlead.router import ask
from fairlead.router.corpus import load_corpus
from fairlead.router.encoder import load_encoder
from fairlead.router.scene import observe


def cpu_ms(act) -> float:
    start = time.process_time()
    act()
    return 1000 * (time.process_time() - start)


def main() -> None:
    texts = [item.text for item in load_corpus() if item.is_held_back]
    print(f"first answer without the encoder {cpu_ms(lambda: ask('my model is slow')):.0f} ms")
    print(f"reading the encoder {cpu_ms(load_encoder):.0f} ms")
    for name, wanted in (("without the encoder", True), ("with the encoder", False)):
        took = [cpu_ms(lambda t=text: ask(t)) for text in texts
                if observe(text).is_understood is wanted]  # fmt: skip
        middle, high, top = np.percentile(took, [50, 95, 100])
        print(f"{name}: {len(took)} texts, p50 {middle:.1f}, p95 {high:.1f}, most {top:.1f} ms")


if __name__ == "__main__":
    main()
