"""The same values by other layers: norms of groups of channels, and products as linear layers."""
