"""Selection against other libraries, at a million rows, in parts, and on short lists."""
