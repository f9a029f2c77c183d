"""The commands, one thin file each, and how errors are shown."""
