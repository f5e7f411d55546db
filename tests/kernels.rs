//! The kernels and the engine, executed on the CPU.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "kernels/index.rs"]
mod index;
#[path = "kernels/topk.rs"]
mod topk;
