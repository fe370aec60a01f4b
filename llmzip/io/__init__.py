"""Archives as file objects, as bytes in pieces, and as tar files of folders."""
