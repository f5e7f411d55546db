//! What stands in for the CUDA backend in a build without the feature `cuda`: there is no GPU.

use super::Backend;
use crate::error::{Error, Result};
use crate::model::TrainState;
use crate::peers::Peers;
use crate::rows::RowSource;
use crate::spec::{ModelSpec, Precision, Training};
use std::sync::Arc;

const REASON: &str = "this sae was built without the feature `cuda`";

/// Why no CUDA device can be used.
pub struct Unavailable {
    /// Whether there is a driver, and so a person who expects the GPU to be used.
    pub driver: bool,
    /// The reason, in one line.
    pub reason: String,
}

/// None.
///
/// # Errors
/// Always.
pub fn available() -> std::result::Result<usize, Unavailable> {
    Err(Unavailable { driver: false, reason: REASON.into() })
}

/// Nothing.
pub fn memory(_t: &Training, _ranks: usize, _n_data: usize) -> u64 {
    0
}

/// None.
pub fn memory_of_card(_ordinal: usize) -> Option<u64> {
    None
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn open(
    _ordinal: usize,
    _data: Arc<dyn RowSource>,
    _spec: ModelSpec,
    _precision: Precision,
    _state: TrainState,
) -> Result<Box<dyn Backend>> {
    Err(Error::Failed(REASON.into()))
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn open_rank(
    _ordinal: usize,
    _data: Arc<dyn RowSource>,
    _spec: ModelSpec,
    _precision: Precision,
    _state: &TrainState,
    _latents: usize,
    _peers: Arc<Peers>,
) -> Result<Box<dyn Backend>> {
    Err(Error::Failed(REASON.into()))
}
