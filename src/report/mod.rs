//! What a person reads: curves, tables, progress.
