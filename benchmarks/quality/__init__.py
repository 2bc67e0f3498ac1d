"""How good the masks are, beside baselines that read no words: `python -m benchmarks.quality.run --help`."""
