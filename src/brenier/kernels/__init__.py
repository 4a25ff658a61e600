"""The inner loops: native, reference and device engines."""
