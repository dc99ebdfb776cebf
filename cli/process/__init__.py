"""How the process of a command begins, fails and ends, and what it shows meanwhile."""
