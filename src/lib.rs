//! Sparse autoencoders on embeddings.

pub mod data;
pub mod devices;
pub mod error;
pub mod report;
