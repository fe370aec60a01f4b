"""Content ↔ frames: tokens as symbols, streams that step together, stored frames.

`streams`, `token_coder` → `frame_codec`; for frames that are coded together: `lookups` → `together`
→ `batches`.
"""
