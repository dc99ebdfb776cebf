"""What `docs/record.py` is made of: the three users' files, a terminal, pages, the notebook."""
