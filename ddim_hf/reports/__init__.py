"""What records and reports share: metrics' names, Markdown, numbers in words, and where a result comes from."""
