//! Sparse autoencoders on embeddings.

pub mod backend;
pub mod config;
pub mod data;
pub mod devices;
pub mod error;
pub mod model;
pub mod noise;
pub mod report;
pub mod schedule;
