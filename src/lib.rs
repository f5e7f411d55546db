//! Sparse autoencoders on embeddings: relaxed top-k, top-k, and sparse L1 + top-k, trained from HDF5 or from memory.
//!
//! The command `sae` does all of it from files. As a library, from rows in memory to a model file:
//!
//! ```
//! use std::sync::{Arc, atomic::AtomicBool};
//! use topk_sae::{backend::Selected, config::Options, model, rows::*, train};
//!
//! # fn main() -> topk_sae::error::Result<()> {
//! # let path = std::env::temp_dir().join(format!("topk-sae-doc-{}.safetensors", std::process::id()));
//! let (n, d) = (500, 16);
//! let values: Vec<f32> = (0..n * d).map(|i| (i as f32 * 0.37).sin() * (i / d % 7) as f32).collect();
//! let rows = Arc::new(Resident::new(Values::F32(values.into()), d)?);
//! let ids = (0..n).map(|row| format!("row{row}")).collect();
//! let split = Split::new(&RowIndex::of_ids(ids), 0);
//!
//! let options = Options { latents: Some(64), k: Some(4), steps: Some(50), ..Options::default() };
//! let config = train::resolve(&options, rows.as_ref(), &split)?;
//! let mut trainer = train::Trainer::new(config.training(), rows, split, Selected::Cpu)?;
//! let trained = trainer.run(&AtomicBool::new(false))?;
//! let meta = config.model_meta(trained.steps, &trained.train_mean);
//! model::file::save(&path, &*trainer.weights()?, &meta)?;
//!
//! let (params, meta) = model::file::load(&path)?;
//! assert_eq!((params.n_latents, meta.architecture.forward.k), (64, 4));
//! # std::fs::remove_file(&path).unwrap();
//! # Ok(())
//! # }
//! ```
//!
//! `examples/train_in_memory.rs` does this with an observer, and `examples/encode.rs` encodes rows with the model.
//!
//! # Features
//!
//! All are on by default. `cli`: the command, its flags and progress (clap, indicatif). `cuda`: NVIDIA GPUs, found when the
//! program runs (cudarc). `plots`: pictures as PNG (plotters). `static`, off by default, builds HDF5 into the binary.
//!
//! # Rooms
//!
//! From the ground up; a room uses those above it in this table only, which a test sees to. Data flow down
//! (`data -> rows -> train -> backend`), results flow up as plain values.
//!
//! | room | holds |
//! | --- | --- |
//! | [`spec`] | what a model is and how it is trained, as plain data |
//! | [`error`] | what went wrong, where, what to do next |
//! | [`noise`] | Gumbel noise as a function of (seed, step, row, latent) |
//! | [`schedule`] | pure functions from a step to temperature, mix, learning rate, L1 weight |
//! | [`text`] | numbers and tables as text |
//! | [`interrupt`] | signals that ask to stop |
//! | [`console`] | standard output and standard error, without panics; progress |
//! | [`files`] | files written whole or not at all |
//! | [`rows`] | which rows there are, where their values come from, split and order |
//! | [`data`] | HDF5 layouts: what a file means |
//! | [`peers`] | processes that train one model together: their ranks, and whether they live |
//! | [`model`] | the tensors, their start, and `model.safetensors` |
//! | [`config`] | every option with its default, unit and help, settled once |
//! | [`backend`] | the formulas, and the one seam to the arithmetic |
//! | [`backend::cpu`] | the plain reference, and the fast path that is checked against it |
//! | [`backend::cuda`] | kernels from `kernels/`, their launchers, the card |
//! | [`train`] | from rows to a model: the loop, its observers and its store |
//! | `devices` | processor, CUDA libraries and GPUs found |
//! | [`run`] | a training in a folder: checkpoints, resume, what a finished run leaves |
//! | [`analysis`] | what is asked of a trained model |
//! | [`export`] | models of other libraries, written and read |
//! | [`report`] | curves, and the HTML page of a run |
//! | `cli` | clap, printing, warnings: the only room that knows a command line |
//!
//! Symbols, the same everywhere: N rows in a batch (`n_rows`), D inputs (`d_in`), M latents (`n_latents`),
//! k active latents (`k`). Matrices are row-major; `w_enc` and `w_dec` are (M, D), one row per latent.

// `console` writes to both without panics.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod analysis;
pub mod backend;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod console;
pub mod data;
#[cfg(feature = "cuda")]
pub mod devices;
pub mod error;
pub mod export;
pub mod files;
pub mod interrupt;
mod memory;
pub mod model;
pub mod noise;
pub mod peers;
pub mod report;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod spec;
pub mod text;
pub mod train;
