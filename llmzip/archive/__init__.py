"""Frames ↔ archives: header, checksums, trailer, what follows; salvage; members of a folder."""
