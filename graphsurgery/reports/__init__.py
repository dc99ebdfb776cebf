"""What was found, for people: tables, drawings, and a page that needs nothing else."""
