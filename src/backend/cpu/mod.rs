//! The CPU, twice: [`mod@reference`] is plain loops that can be checked by eye against the formulas of
//! [`crate::backend`]; [`fast`] is what trains, checked against it.

mod above;
mod batch;
mod block;
mod evaluate;
pub mod fast;
mod gates;
pub mod linalg;
mod look;
pub mod memory;
mod norm;
pub use norm::Batch;
pub mod reference;
pub mod relax;
mod rows;
pub mod select;
pub mod simd;
pub mod sparse;
