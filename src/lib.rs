//! Sparse autoencoders on embeddings.

pub mod data;
pub mod error;
pub mod report;
