"""Networks of libraries that are not installed with graphsurgery: `hf:…`, `ultralytics:…`, `smp:…`."""
