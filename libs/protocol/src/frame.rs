//! frame: to come.
