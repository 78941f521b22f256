"""What /metrics tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from research.serve.encoder import Encoder
from research.serve.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts and times of an engine's work. Gauges are read when they are asked for."""

    def __init__(self, engine: Engine | Encoder):
        self.registry = CollectorRegistry()
        for name, meaning, value in (
            ("running", "Texts that are written", lambda: engine.running),
            ("waiting", "Texts that wait for their turn", lambda: engine.waiting),
            ("pages", "Pages of the pool", lambda: engine.pages.count),
            ("pages_held", "Pages that texts hold", lambda: engine.pages.held),
            ("steps", "Calls of the model", lambda: engine.counts.steps),
            (
                "computed_tokens",
                "Tokens that went through the model",
                lambda: engine.counts.computed,
            ),
            ("found_tokens", "Prompt tokens found in the cache", lambda: engine.counts.found),
            ("written_tokens", "Tokens written", lambda: engine.counts.written),
            ("preempted", "Texts stopped for want of pages", lambda: engine.counts.preempted),
        ):
            Gauge(f"graft_{name}", meaning, registry=self.registry).set_function(value)
        self.ended = Counter(
            "graft_texts_ended", "Texts that have ended", ["finish"], registry=self.registry
        )
        self.seconds = Histogram(
            "graft_text_seconds",
            "From a request to a text's end",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "graft_first_token_seconds",
            "From a request to a text's first token",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def observe(self, finish: str, first: float | None, seconds: float) -> None:
        """Notes the end of a text, with the seconds to its first token and to its end."""
        self.ended.labels(finish).inc()
        self.seconds.observe(seconds)
        if first is not None:
            self.first.observe(first)

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
