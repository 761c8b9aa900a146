"""Phrases per second with and without micro-batching, for 1 to 64 annotators, and fairness.

Three `sspsam serve` with the shipped weights are measured in turn: one with MAX_BATCH=1 and one with batches,
both with SECOND_LOOK=off, and one with batches and further looks, the default. Images are embedded before.
Each client has its own task and sends its next phrase once the last one is answered. Clients and servers
share this machine's cores.

    python benchmarks/batching.py [--seconds 4] [--rounds 2] [--clients 1 4 16 32 64]
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import requests
from common.sections import ROOT, table, write_section
from common.serving import Scenes, ask, metric, serving

BATCH = 16
PICTURE = "docs/images/batching.png"
AT = 32
"""Number of clients for the reported ratio."""


@dataclass
class Load:
    """Measurements of the clients."""

    seconds: float = 0.0
    took_s: list[list[float]] = field(default_factory=list)
    """Number of answers per client."""
    errors: list[str] = field(default_factory=list)
    phrases: float = 0.0
    passes: float = 0.0
    """Number of forward passes."""

    @property
    def rate(self) -> float:
        return sum(map(len, self.took_s)) / self.seconds

    def percentile(self, percent: float) -> float:
        return float(np.percentile(np.concatenate(self.took_s), percent))

    @property
    def fairness(self) -> float:
        """Answers of the least served client divided by those of the most served."""
        counts = [len(one) for one in self.took_s]
        return min(counts) / max(counts)

    @property
    def batch(self) -> float:
        """Average number of phrases per forward pass."""
        return self.phrases / max(self.passes, 1)


Loads = dict[int, Load]
"""By number of clients."""


def measure(load: Load, url: str, shown: Scenes, clients: int, seconds: float) -> None:
    """Runs clients for some seconds and adds their measurements."""
    load.seconds += seconds
    load.took_s = load.took_s or [[] for _ in range(clients)]
    before = [metric(url, f"sspsam_batch_size_{what}") for what in ("sum", "count")]
    until_s = time.monotonic() + seconds

    def annotate(client: int) -> None:
        task = shown.server.tasks[client + 1]
        phrases = shown.phrases[client + 1]
        with requests.Session() as session:
            while time.monotonic() < until_s:
                since_s = time.perf_counter()
                try:
                    ask(session, url, task, phrases[len(load.took_s[client]) % len(phrases)])
                except (RuntimeError, requests.RequestException) as error:
                    load.errors.append(str(error))
                load.took_s[client].append(time.perf_counter() - since_s)

    threads = [threading.Thread(target=annotate, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = [metric(url, f"sspsam_batch_size_{what}") for what in ("sum", "count")]
    load.phrases += after[0] - before[0]
    load.passes += after[1] - before[1]


def measure_all(counts: list[int], seconds: float, rounds: int) -> tuple[Loads, Loads, Loads]:
    """Measurements without batching, with it, and with further looks as well, taken in turn."""
    limit = str(2 * max(counts))
    with (
        serving(max(counts), MAX_BATCH="1", QUEUE_LIMIT=limit, SECOND_LOOK="off") as alone,
        serving(max(counts), MAX_BATCH=str(BATCH), QUEUE_LIMIT=limit, SECOND_LOOK="off") as together,
        serving(max(counts), MAX_BATCH=str(BATCH), QUEUE_LIMIT=limit) as looking,
        requests.Session() as session,
    ):
        servers = alone, together, looking
        for url, shown in servers:
            for task, phrases in shown.phrases.items():  # embeds the images beforehand
                ask(session, url, shown.server.tasks[task], phrases[0])
        loads: tuple[Loads, Loads, Loads] = ({}, {}, {})
        for _ in range(rounds):
            for count in counts:
                for place, server in enumerate(servers):
                    measure(loads[place].setdefault(count, Load()), *server, count, seconds)
    return loads


def draw(alone: Loads, together: Loads) -> None:
    """Plots throughput and latency against the number of clients."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (rates, waits) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for loads, name, colour in ((alone, "each by itself", "0.6"), (together, "batched", "tab:blue")):
        counts = list(loads)
        rates.plot(counts, [load.rate for load in loads.values()], "o-", color=colour, label=name)
        for percent, style in ((50, "o-"), (95, "o:")):
            waits.plot(
                counts,
                [load.percentile(percent) for load in loads.values()],
                style,
                color=colour,
                label=f"{name}, p{percent}",
            )
    rates.set(ylabel="phrases per second", ylim=(0, None))
    waits.set(ylabel="seconds", yscale="log")
    for axes in (rates, waits):
        axes.set(xlabel="clients", xscale="log", xticks=list(alone))
        axes.set_xticks(list(alone), list(map(str, alone)))
        axes.minorticks_off()
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / PICTURE, dpi=110)


def main() -> None:
    """Measures both servers and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="per number of clients and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, AT, 64])
    options = parser.parse_args()
    alone, together, looking = measure_all(options.clients, options.seconds, options.rounds)
    draw(alone, together)
    rows = [
        [
            count,
            f"{together[count].rate / alone[count].rate:.2f}",
            f"{alone[count].rate:.1f}",
            f"{together[count].rate:.1f}",
            f"{together[count].batch:.1f}",
            f"{alone[count].percentile(95):.2f}",
            f"{together[count].percentile(95):.2f}",
            f"{together[count].fairness:.2f}",
            f"{looking[count].rate:.1f}",
            f"{looking[count].percentile(95):.2f}",
            sum(len(loads[count].errors) for loads in (alone, together, looking)),
        ]
        for count in options.clients
    ]
    head = ["clients", "ratio", "phrases/s unbatched", "batched", "batch size", "p95 s unbatched", "batched"]
    head += ["fairness", "with further looks", "p95 s", "errors"]
    write_section(
        "Batching",
        f"Throughput of `sspsam serve` with the demo weights on embedded images, MAX_BATCH={BATCH} against "
        "MAX_BATCH=1, without further looks, and with them. Fairness: responses of the least served client "
        "divided by those of the most served, without further looks.",
        table(head, rows),
        "![Throughput and latency against clients](images/batching.png)",
    )


if __name__ == "__main__":
    main()
