"""Content ↔ frames: tokens as symbols, streams that step together, stored frames."""
