"""Speed and memory, as ratios within one run: relational losses, a training step, exports, sliders; for `rdd bench`."""
