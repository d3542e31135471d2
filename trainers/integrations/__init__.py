"""Sharpness-aware training inside other people's loops; each module needs the library that it is named after."""
