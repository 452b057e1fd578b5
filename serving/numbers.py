"""Counts of what the service does, as text for Prometheus."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

HELP = {
    "batches": "Batches that were judged.",
    "pictures": "Pictures that were judged.",
    "judging_seconds": "Seconds that judging took, summed over the pictures.",
    "requests": "Requests by method, route and status.",
    "watched_broken": "Files of watched folders that could not be read.",
    "webhook_sent": "Messages that the webhook accepted.",
    "webhook_failed": "Attempts to send a message to the webhook that failed.",
    "webhook_dropped": "Messages for the webhook that were given up.",
    "mqtt_dropped": "Messages for the MQTT broker that were given up.",
    "queue": "Pictures that wait to be judged.",
    "webhook_waiting": "Messages that the webhook has not accepted yet.",
    "memory_bytes": "Resident memory of the process.",
}
PREFIX = "glass"


class Numbers:
    """Counters that only grow; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter.

        Args:
            name: a key of `HELP`.
            by: at least 0.
            labels: of Prometheus; of few values, since each combination is kept.
        """
        with self._lock:
            self._counters[name, tuple(sorted(labels.items()))] += by  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, float]) -> str:
        """All counters, and values of the moment, in the text format of Prometheus.

        Args:
            gauges: by name, a key of `HELP`.
        """
        with self._lock:
            counters = sorted(self._counters.items())
        lines: list[str] = []
        for name in sorted({name for (name, _), _ in counters}):
            full = f"{PREFIX}_{name}_total"
            lines += [f"# HELP {full} {HELP[name]}", f"# TYPE {full} counter"]
            lines += [f"{full}{_labels(labels)} {value:.15g}" for (key, labels), value in counters if key == name]
        for name, value in sorted(gauges.items()):
            full = f"{PREFIX}_{name}"
            lines += [f"# HELP {full} {HELP[name]}", f"# TYPE {full} gauge", f"{full} {value:.15g}"]
        return "\n".join(lines) + "\n"


def memory_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for _, value in labels)
    pairs = [f'{key}="{value}"' for (key, _), value in zip(labels, escaped, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""
