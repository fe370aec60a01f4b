"""Archives as files and in pieces."""
