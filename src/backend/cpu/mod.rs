//! The CPU, twice: [`reference`] is plain loops that can be checked by eye against the formulas of
//! [`crate::backend`]; [`fast`] is what trains, checked against it.

mod block;
pub mod fast;
pub mod linalg;
mod norm;
pub use norm::Batch;
pub mod reference;
pub mod relax;
pub mod select;
pub mod simd;
pub mod sparse;
