"""Frames ↔ archives: header, checksums, trailer, what follows; salvage."""
