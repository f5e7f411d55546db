//! The kernels and the engine, executed on the CPU.
#![allow(clippy::unwrap_used)]

#[path = "backends/case.rs"]
mod case;
mod common;
#[path = "kernels/engine.rs"]
mod engine;
#[path = "kernels/index.rs"]
mod index;
#[path = "kernels/topk.rs"]
mod topk;
