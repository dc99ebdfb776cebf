"""A network as fx sees it, without types: our layers, spellings, paths, values and shapes."""
