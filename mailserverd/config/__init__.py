"""Generic configuration: TOML to checked values, with path-precise errors."""
