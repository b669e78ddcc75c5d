//! Wirelane.
