"""One function per data set, which finds the raw files and returns `RawData`."""
