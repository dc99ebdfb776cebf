"""Training: what it runs on, learns from, aims at, and how it goes on."""
