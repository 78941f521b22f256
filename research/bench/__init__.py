"""Side-by-side benchmarks: contenders take turns in one run, each in its own process."""
