"""All that reads YAML: compose, check, build."""
