"""CPU seconds of each part of the road, beside the peer named for it: `python -m benchmarks.speed.run`."""
