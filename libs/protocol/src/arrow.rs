//! arrow: to come.
