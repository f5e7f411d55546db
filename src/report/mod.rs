//! What a person reads: curves, tables, progress.

pub mod plots;
pub mod progress;
mod scale;
pub mod table;
