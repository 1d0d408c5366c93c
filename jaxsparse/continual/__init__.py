"""Baselines of online continual learning, and replay memories."""

from jaxsparse.continual import bgd, buffer, er, gem, mer, online

__all__ = ["bgd", "buffer", "er", "gem", "mer", "online"]
