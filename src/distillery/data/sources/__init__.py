"""One function a data set, which finds the raw files and returns them as `RawData`."""
