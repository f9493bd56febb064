"""Pixels in files and in memory: reading, resizing, cutting, matching, degrading, writing."""
