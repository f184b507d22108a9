"""rddlib: Relational Diffusion Distillation (Feng et al., ACM MM 2024), a library that reads like the paper."""

__version__ = "0.1.0"
