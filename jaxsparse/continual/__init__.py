"""What online continual learning needs beside the gates: memories, and the methods compared."""

from jaxsparse.continual import bgd, buffer, er, gem, mer, online

__all__ = ["bgd", "buffer", "er", "gem", "mer", "online"]
