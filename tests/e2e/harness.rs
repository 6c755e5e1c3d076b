//! Drives the shipped binaries from outside.
