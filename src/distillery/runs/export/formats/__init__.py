"""The formats that a student is exported to, a file each."""
