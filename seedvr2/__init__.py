"""SeedVR2 (arXiv 2506.05301): one-step video restoration, in pure PyTorch."""

__version__ = "0.1.0"
