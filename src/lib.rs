//! Sparse autoencoders on embeddings: relaxed top-k, top-k, and sparse L1 + top-k, trained from HDF5.
//!
//! The rooms, in reading order. Data flow one way: `data -> train -> backend -> train -> report`; the training
//! loop does not know which device it is on, and the arithmetic does not know that there is a loop.
//!
//! | room | holds |
//! | --- | --- |
//! | [`spec`] | the ground floor: what a model is and how it is trained, as plain data |
//! | [`config`] | every option with its default and unit, settled once |
//! | [`data`] | HDF5 layouts, split by id, shuffled batches |
//! | [`model`] | the tensors and their shapes, start weights |
//! | [`backend`] | the formulas, and the one seam to the arithmetic |
//! | [`backend::cpu`] | the plain reference, and the fast path that is checked against it |
//! | [`backend::cuda`] | kernels from `kernels/`, their launchers, the card |
//! | [`noise`] | Gumbel noise as a function of (seed, step, row, latent) |
//! | [`schedule`] | pure functions from a step to temperature, mix, learning rate, L1 weight |
//! | [`train`] | the loop, metrics, checkpoints, resume, the run folder |
//! | [`analysis`] | what is asked of a trained model |
//! | [`export`] | models of other libraries, written and read |
//! | [`report`] | curves, tables, progress, the HTML page of a run |
//! | [`devices`] | processor, CUDA libraries and GPUs found |
//! | [`files`] | files written whole or not at all, and the one check of outputs |
//! | [`interrupt`] | signals that ask to stop |
//! | [`console`] | standard output and standard error, without panics |
//! | [`cli`] | clap alone |
//! | [`error`] | what went wrong, where, what to do next |
//!
//! Symbols, the same everywhere: N rows in a batch (`n_rows`), D inputs (`d_in`), M latents (`n_latents`),
//! k active latents (`k`). Matrices are row-major; `w_enc` and `w_dec` are (M, D), one row a latent.

// `console` writes to both without panics.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod analysis;
pub mod backend;
pub mod cli;
pub mod config;
pub mod console;
pub mod data;
pub mod devices;
pub mod error;
pub mod export;
pub mod files;
pub mod interrupt;
pub mod model;
pub mod noise;
pub mod report;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod spec;
pub mod text;
pub mod train;
