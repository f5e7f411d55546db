//! The CUDA engine, in reading order.
//!
//! | file | holds |
//! | --- | --- |
//! | [`device`] | what is asked of a device: memory, copies, launches, dense products, recorded work |
//! | [`params`] | structs that host and kernels share |
//! | [`buffer`] | device memory with a type |
//! | [`tensors`] | the training state on the device |
//! | [`work`] | sizes of a run, and the buffers of a batch |
//! | [`launch`] | one launcher a kernel |
//! | [`engine`] | what is queued for a step and an evaluation |
//! | `look` | a look inside a pass |

pub mod buffer;
pub mod device;
pub mod engine;
pub mod launch;
mod look;
pub mod params;
pub mod tensors;
pub mod work;

use super::{Backend, ModelSpec};
use crate::config::Precision;
use crate::data::Embeddings;
use crate::error::{Error, Result};
use crate::model::TrainState;
use std::sync::Arc;

/// The kernels' sources, carried by the binary.
pub mod sources {
    include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
}

/// Why no CUDA device can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// True where an NVIDIA driver is there, so that a person would expect the GPU to be used.
    pub driver: bool,
    /// What is missing, in one line without a full stop.
    pub reason: String,
}

// TO BE REPLACED by the engine, with these signatures: `available`, `open`, `memory`.
const NO_ENGINE: &str = "this build has no CUDA engine yet";

/// Number of devices that can be used (at least 1).
///
/// # Errors
/// Why there is none.
pub fn available() -> std::result::Result<usize, Unavailable> {
    Err(Unavailable { driver: false, reason: NO_ENGINE.into() })
}

/// A backend on device `ordinal` over `data` that goes on from `state`.
///
/// # Errors
/// What is missing on this machine, or what the device refuses.
pub fn open(
    ordinal: usize,
    _data: Arc<Embeddings>,
    _spec: ModelSpec,
    _precision: Precision,
    _state: TrainState,
) -> Result<Box<dyn Backend>> {
    Err(Error::Failed(format!("cuda:{ordinal}: {NO_ENGINE}")))
}

/// Bytes of device memory that training takes beside the data: D inputs, M latents, batches of `n_rows`.
pub fn memory(
    _spec: &ModelSpec,
    _d_in: usize,
    _n_latents: usize,
    _tied: bool,
    _n_rows: usize,
    _precision: Precision,
) -> u64 {
    0
}
