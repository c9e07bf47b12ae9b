//! The error types, and the only errno table.
