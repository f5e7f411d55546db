//! What a person reads: curves, tables, progress.

pub mod html;
pub mod plots;
pub mod progress;
mod scale;
pub mod table;
